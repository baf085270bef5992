"""Questions whose right answers are known, made from a seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bundled.knowledge import FACTS, question, statement
from bundled.recall import fact
from bundled.words import FILLER, NAMES, RELATIONS, VALUES

_FACTS = 6
_LEVELS = [{"label": str(number)} for number in range(10)]


@dataclass(frozen=True)
class Task:
    """A question of /v1/decisions about an input.

    Attributes:
        gold: the index of the right answer; of a predicate 0 is true and 1 is false.
    """

    state: str
    question: dict[str, Any]
    gold: int


@dataclass(frozen=True)
class Group:
    """Tasks of one kind. make: (random numbers, how many) -> tasks."""

    name: str
    title: str
    make: Callable[[random.Random, int], list[Task]]


def recalled_value(rng: random.Random, count: int, read: str = "label") -> list[Task]:
    """Which of four values has one of six names?"""
    return [_recalled_value(rng, read) for _ in range(count)]


def recalled_truth(rng: random.Random, count: int) -> list[Task]:
    """Is this sentence one of six? Half of them are."""
    return [_recalled_truth(rng, place % 2) for place in range(count)]


def counted(rng: random.Random, count: int) -> list[Task]:
    """Which digit stands in the text?"""
    return [_counted(rng) for _ in range(count)]


def world(rng: random.Random, count: int) -> list[Task]:
    """Facts of the bundled model's small world: which of four sentences is the answer?"""
    return [_world(rng) for _ in range(count)]


GROUPS = (
    Group("recall", "One of four values, by its letter", recalled_value),
    Group(
        "recall_text",
        "One of four values, by a sentence with it",
        lambda rng, count: recalled_value(rng, count, "sequence"),
    ),
    Group("truth", "Whether a sentence was said", recalled_truth),
    Group("score", "A digit on a scale of ten", counted),
    Group("world", "Facts of a small world, by a sentence", world),
)


def _facts(rng: random.Random) -> tuple[str, list[str], list[str]]:
    """(relation, names, values)"""
    return rng.choice(RELATIONS), rng.sample(NAMES, _FACTS), rng.sample(VALUES, _FACTS)


def _text(relation: str, names: list[str], values: list[str]) -> str:
    return " ".join(fact(relation, n, v) for n, v in zip(names, values, strict=True))


def _recalled_value(rng: random.Random, read: str) -> Task:
    relation, names, values = _facts(rng)
    gold = rng.randrange(_FACTS)
    others = [value for value in values if value != values[gold]]
    choices = [values[gold], *rng.sample(others, 3)]
    rng.shuffle(choices)
    place = choices.index(values[gold])
    if read == "sequence":
        choices = [fact(relation, names[gold], value) for value in choices]
    question = _choice(f"What is the {relation} of {names[gold]}?", choices, read)
    return Task(_text(relation, names, values), question, place)


def _recalled_truth(rng: random.Random, gold: int) -> Task:
    relation, names, values = _facts(rng)
    place = rng.randrange(_FACTS)
    said = values[place] if gold == 0 else values[(place + 1) % _FACTS]
    asked = f"Is the {relation} of {names[place]} {said}?"
    return Task(_text(relation, names, values), {"type": "predicate", "instructions": asked}, gold)


def _counted(rng: random.Random) -> Task:
    name, number = rng.choice(NAMES), rng.randrange(10)
    asked = {"type": "score", "instructions": f"How many has {name}?", "levels": _LEVELS}
    return Task(f"The number of {name} is {number}.", asked, number)


def _world(rng: random.Random) -> Task:
    known = rng.choice([one for one in FACTS if one.topic not in ("after", "before")])
    others = {one.answer for one in FACTS if one.topic == known.topic} - {known.answer}
    answers = [known.answer, *rng.sample(sorted(others), 3)]
    rng.shuffle(answers)
    choices = [statement(replace(known, answer=answer)) for answer in answers]
    asked = _choice(question(known, rng.randrange(6)), choices, "sequence")
    return Task(rng.choice(FILLER), asked, answers.index(known.answer))


def _choice(asked: str, values: list[str], read: str) -> dict[str, Any]:
    return {
        "type": "choice",
        "instructions": asked,
        "choices": [{"value": value} for value in values],
        "read": read,
    }
