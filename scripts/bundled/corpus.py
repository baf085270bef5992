"""Which tasks are trained, how often, and how that changes during the training."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .house import house
from .knowledge import knowledge, knowledge_chat
from .recall import recall
from .sample import Sample, draw
from .sums import sums
from .talk import counting, plain_text, repeating, small_talk, story, unknown
from .tools import tool_use

Make = Callable[[random.Random, float, int], Sample]


# In the first stage the model learns to look things up in its context: repeating and short
# recall come often, what builds on that comes less.
FIRST_STAGE = 0.12


@dataclass(frozen=True, slots=True)
class Task:
    """make(rng, progress, room) draws a sample of at most about `room` tokens; share is its part
    of the samples (first_share in the first stage), weight that of its tokens in the loss."""

    name: str
    make: Make
    share: float
    weight: float = 1.0
    first_share: float | None = None

    def share_at(self, progress: float) -> float:
        if progress < FIRST_STAGE and self.first_share is not None:
            return self.first_share
        return self.share


def _plain(generator: Callable[[random.Random], Sample]) -> Make:
    return lambda rng, progress, room: generator(rng)


def _recall(rng: random.Random, progress: float, room: int) -> Sample:
    """4 facts at first, then 16, then 48, as far as the row has room for them."""
    largest = 4 if progress < 0.12 else 16 if progress < 0.3 else 48
    questions = rng.choice((1, 2, 4, 8))
    # A fact is 8 to 9 tokens, a later question and its answer about 25, a filler sentence 7.
    left = room - 60 - 25 * questions
    facts = rng.randrange(2, max(min(largest, left // 9), 3) + 1)
    filler = rng.choice((0.0, 0.0, 0.2, 0.9)) * (left - 9 * facts) / 8
    return recall(rng, facts, questions, filler=max(int(filler), 0))


def _repeat(rng: random.Random, progress: float, room: int) -> Sample:
    return repeating(rng, 6 if progress < 0.06 else 12 if progress < 0.12 else 24)


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


def _conversation(rng: random.Random, progress: float, room: int) -> Sample:
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
    Task("sums", _plain(sums), 34, first_share=14),
    Task("recall", _recall, 17, 2.0, first_share=24),
    Task("tools", _plain(tool_use), 13, 1.5, first_share=1),
    Task("house", _plain(house), 20, first_share=8),
    Task("knowledge", _plain(knowledge), 18, first_share=8),
    Task("conversation", _conversation, 8),
    Task("talk", _plain(small_talk), 6),
    Task("counting", _plain(counting), 3, 0.5),
    Task("repeat", _repeat, 4, first_share=40),
    Task("unknown", _plain(unknown), 3),
    Task("story", _plain(story), 2, 0.3),
    Task("text", _plain(plain_text), 2, 0.3),
)

# What can be learned in a few minutes.
QUICK_TASKS = (
    Task("sums", _plain(lambda rng: sums(rng, digits=1)), 3.0),
    Task("talk", _plain(small_talk), 2.0),
    Task("counting", _plain(counting), 0.7, 0.5),
    Task("text", _plain(plain_text), 0.3, 0.3),
)


def draw_task(
    tasks: Sequence[Task], rng: random.Random, progress: float, room: int
) -> tuple[int, float, Sample]:
    """(index of the task, loss weight, a sample of the training side of the split)."""
    index = rng.choices(range(len(tasks)), [task.share_at(progress) for task in tasks])[0]
    task = tasks[index]
    sample = draw(lambda rng: task.make(rng, progress, room), rng, held_out=False)
    return index, task.weight, sample


def corpus(seed: int, count: int) -> Iterator[Sample]:
    """Samples of all tasks, for the tokenizer."""
    rng = random.Random(seed)
    for _ in range(count):
        yield draw_task(TASKS, rng, 1.0, 512)[2]
