"""Which tasks are trained, how often, and how that changes during the training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .decisions import decision
from .house import house
from .json_talk import json_in_words, json_unasked, remark
from .knowledge import knowledge, knowledge_chat
from .recall import pairs, recall
from .sample import Sample, draw
from .sums import sums
from .talk import counting, plain_text, repeating, small_talk, story, unknown
from .thinking import thoughtful
from .tools import forced_session, tool_session


@dataclass(frozen=True, slots=True)
class Stage:
    """What a batch is drawn for: the level of the curriculum, and the tokens of a row."""

    level: int
    room: int


Make = Callable[[random.Random, Stage], Sample]

# Recall is learned with few facts first: largest number of facts, and of words to repeat, of
# each level. The training goes up a level when it can do the one before.
FACTS = (4, 8, 16, 32, 48)
REPEATED = (6, 12, 16, 24, 24)
# Up to this level looking things up is most of the training; what builds on it comes less.
EARLY = 1


@dataclass(frozen=True, slots=True)
class Task:
    """share is the task's part of the samples (early: in the early levels), weight that of its
    tokens in the loss."""

    name: str
    make: Make
    share: float
    weight: float = 1.0
    early: float | None = None

    def share_at(self, level: int) -> float:
        return self.share if level > EARLY or self.early is None else self.early


def _plain(generator: Callable[[random.Random], Sample]) -> Make:
    return lambda rng, stage: generator(rng)


def _later_recall(rng: random.Random, stage: Stage) -> Sample:
    return _recall(rng, stage, numbers=0.3)


def _recall(rng: random.Random, stage: Stage, numbers: float = 0.1) -> Sample:
    questions = rng.choice((1, 2, 4, 8))
    # A fact is 8 to 9 tokens, a later question and its answer about 25, a filler sentence 7.
    left = stage.room - 60 - 25 * questions
    facts = rng.randrange(2, max(min(FACTS[stage.level], left // 9), 3) + 1)
    share = rng.choice((0.0, 0.0, 0.2, 0.9)) if stage.level > EARLY else 0.0
    filler = max(int(share * (left - 9 * facts) / 8), 0)
    return recall(rng, facts, questions, filler=filler, numbers=numbers)


def _pairs(rng: random.Random, stage: Stage) -> Sample:
    return pairs(rng, rng.randrange(2, min(FACTS[stage.level], stage.room // 10) + 1))


def _tools(rng: random.Random, stage: Stage) -> Sample:
    return tool_session(rng, *_session(rng, stage))


def _forced(rng: random.Random, stage: Stage) -> Sample:
    return forced_session(rng, *_session(rng, stage))


def _session(rng: random.Random, stage: Stage) -> tuple[int, int]:
    """(tools that are offered, requests) for which there is room."""
    # A tool is 50 to 90 tokens, the text around the list 50, an exchange 20 to 50.
    offered = rng.randrange(1, min(4, (stage.room - 100) // 70) + 1)
    most = max(min((stage.room - 60 - 75 * offered) // 40, 10), 1)
    return offered, rng.randrange(most // 2, most) + 1


def _repeat(rng: random.Random, stage: Stage) -> Sample:
    return repeating(rng, REPEATED[stage.level])


_SYSTEM = (
    "You are a helpful assistant.",
    "You are the assistant of mlx_parallm.",
    "Answer briefly.",
    "You are a friendly assistant. Be short.",
)
# Parts of longer conversations: (generator, share).
_SHORT = (
    (sums, 4),
    (house, 3),
    (small_talk, 2),
    (knowledge_chat, 1),
    (counting, 1),
    (repeating, 1),
)


def _conversation(rng: random.Random, stage: Stage) -> Sample:
    """Two to four unrelated turns, sometimes under a system message."""
    generators = rng.choices([g for g, _ in _SHORT], [w for _, w in _SHORT], k=rng.randrange(1, 5))
    messages = [
        message
        for generator in generators
        for message in draw(generator, rng, held_out=False).messages
    ]
    if len(generators) == 1 or rng.random() < 0.3:
        messages = [{"role": "system", "content": rng.choice(_SYSTEM)}, *messages]
    return Sample("taught", messages)


TASKS = (
    Task("sums", _plain(sums), 34, early=16),
    Task("recall", _recall, 9, 2.0, early=24),
    Task("pairs", _pairs, 2, early=30),
    Task("tools", _tools, 15, 2.0, early=2),
    Task("house", _plain(house), 20, early=10),
    Task("knowledge", _plain(knowledge), 18, early=10),
    Task("conversation", _conversation, 6, early=2),
    Task("talk", _plain(small_talk), 6, early=2),
    Task("counting", _plain(counting), 3, 0.5),
    Task("repeat", _repeat, 3, early=24),
    Task("unknown", _plain(unknown), 3, early=1),
    Task("story", _plain(story), 2, 0.3),
    Task("text", _plain(plain_text), 2, 0.3),
)

# The later training: what was learned before, so that it stays, and what is new. The new samples
# are short: they are most of the samples and a third of the tokens.
LATER_TASKS = (
    Task("sums", _plain(sums), 24),
    Task("recall", _later_recall, 10, 2.0),
    Task("pairs", _pairs, 1),
    Task("tools", _tools, 5, 2.0),
    Task("house", _plain(house), 30),
    Task("knowledge", _plain(knowledge), 8),
    Task("conversation", _conversation, 4),
    Task("talk", _plain(small_talk), 3),
    Task("counting", _plain(counting), 1, 0.5),
    Task("repeat", _repeat, 1),
    Task("unknown", _plain(unknown), 2),
    Task("story", _plain(story), 1, 0.3),
    Task("text", _plain(plain_text), 1, 0.3),
    Task("forced", _forced, 1.5, 2.0),
    Task("json", _plain(json_in_words), 18),
    Task("schema", _plain(json_unasked), 18),
    Task("thinking", lambda rng, stage: thoughtful(rng, stage.room), 28),
    Task("remark", _plain(remark), 2),
    Task("decisions", _plain(decision), 20, 2.0),
)

# What can be learned in a few minutes.
QUICK_TASKS = (
    Task("sums", _plain(lambda rng: sums(rng, digits=1)), 3.0),
    Task("talk", _plain(small_talk), 2.0),
    Task("counting", _plain(counting), 0.7, 0.5),
    Task("text", _plain(plain_text), 0.3, 0.3),
)


def draw_task(tasks: Sequence[Task], rng: random.Random, stage: Stage) -> tuple[int, float, Sample]:
    """(index of the task, loss weight, a sample of the training side of the split)."""
    index = rng.choices(range(len(tasks)), [task.share_at(stage.level) for task in tasks])[0]
    task = tasks[index]
    sample = draw(lambda rng: task.make(rng, stage), rng, held_out=False)
    return index, task.weight, sample


def corpus(seed: int, count: int) -> Iterator[Sample]:
    """Samples of all tasks, for the tokenizer."""
    rng = random.Random(seed)
    for _ in range(count):
        yield draw_task(TASKS, rng, Stage(len(FACTS) - 1, 512))[2]
