"""A few words of thought before the answer, where the chat template opens it."""

from __future__ import annotations

import random
from collections.abc import Callable

from .house import house
from .json_talk import json_after_thinking
from .knowledge import knowledge_chat
from .recall import recall
from .sample import Sample
from .sums import sums, thought_and_answer
from .talk import small_talk, unknown
from .tools import thoughtful_use


def thoughtful(rng: random.Random, room: int) -> Sample:
    """One question, a thought and its answer.

    Args:
        room: tokens of a row.
    """
    return rng.choices(_MAKERS, _SHARES)[0](rng, room)


def thoughtful_sum(rng: random.Random, digits: int = 0) -> Sample:
    """The steps are the thought, and the answer is short."""
    sample = sums(rng, digits)
    return _thought(sample, *thought_and_answer(sample.messages[1]["content"]))


def thoughtful_recall(rng: random.Random, facts: int) -> Sample:
    """The thought is whose fact is looked for, as a question of the text."""
    sample = recall(rng, facts)
    said = sample.messages[1]["content"]
    return _thought(sample, said.partition(" is ")[0] + "?", said)


def _thought(sample: Sample, thought: str, answer: str | None = None) -> Sample:
    asked, told = sample.messages
    told = {**told, "content": answer or told["content"], "thought": thought}
    return Sample(sample.key, [asked, told])


def _always(make: Callable[[random.Random], Sample], thought: str) -> _Make:
    return lambda rng, room: _thought(make(rng), thought)


_Make = Callable[[random.Random, int], Sample]

_WEIGHED: tuple[tuple[_Make, float], ...] = (
    (lambda rng, room: thoughtful_sum(rng), 5),
    (lambda rng, room: thoughtful_recall(rng, rng.randrange(2, min(room // 12, 24))), 3),
    (lambda rng, room: thoughtful_use(rng, rng.randrange(1, 4 if room >= 512 else 2)), 4),
    (lambda rng, room: json_after_thinking(rng), 3),
    (_always(house, "This is about mlx_parallm."), 2),
    (_always(knowledge_chat, "I know that."), 1),
    (_always(small_talk, "This is small talk."), 1),
    (_always(unknown, "I was not told."), 1),
)
_MAKERS = [make for make, _ in _WEIGHED]
_SHARES = [share for _, share in _WEIGHED]
