"""Questions whose right answers are known, made from a seed.

The bundled model is trained on such questions. Those here are others: of digits and of the small
world only what the training does not draw, and of six facts there are too many to meet one twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from bundled.decisions import count_key
from bundled.knowledge import fact_and_wording, fact_key, other_answers, question, statement
from bundled.recall import fact
from bundled.sample import is_held_out
from bundled.words import FILLER, NAMES, RELATIONS, VALUES

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


def recalled_value(
    rng: random.Random, count: int, read: str = "label", facts: int = 6
) -> list[Task]:
    """Which of four values has one of some names?"""
    return [_recalled_value(rng, read, facts) for _ in range(count)]


def recalled_truth(rng: random.Random, count: int, facts: int = 6) -> list[Task]:
    """Is this sentence in the text? Half of them are."""
    return [_recalled_truth(rng, place % 2, facts) for place in range(count)]


def stated_value(rng: random.Random, count: int) -> list[Task]:
    """Which of four values does the text state?"""
    return recalled_value(rng, count, facts=1)


def stated_truth(rng: random.Random, count: int) -> list[Task]:
    """Is this the sentence that the text is? Half of them are."""
    return recalled_truth(rng, count, facts=1)


def counted(rng: random.Random, count: int) -> list[Task]:
    """Which digit stands in the text?"""
    return [_counted(rng) for _ in range(count)]


def world(rng: random.Random, count: int) -> list[Task]:
    """Facts of the bundled model's small world: which of four sentences is the answer?"""
    return [_world(rng) for _ in range(count)]


GROUPS = (
    Group("stated", "The value of the only fact, of four by its letter", stated_value),
    Group("stated_truth", "Whether the only fact was said", stated_truth),
    Group("recall", "One of six facts' values, of four by its letter", recalled_value),
    Group(
        "recall_text",
        "The same, by a sentence with the value",
        lambda rng, count: recalled_value(rng, count, "sequence"),
    ),
    Group("truth", "Whether one of six facts was said", recalled_truth),
    Group("score", "A digit on a scale of ten", counted),
    Group("world", "Facts of a small world, by a sentence", world),
)


def _facts(rng: random.Random, count: int) -> tuple[str, list[str], list[str]]:
    """(relation, names, values)"""
    return rng.choice(RELATIONS), rng.sample(NAMES, count), rng.sample(VALUES, count)


def _text(relation: str, names: list[str], values: list[str]) -> str:
    return " ".join(fact(relation, n, v) for n, v in zip(names, values, strict=True))


def _others(rng: random.Random, value: str, values: list[str], count: int) -> list[str]:
    """Wrong values: those of the text's other facts, where there are enough."""
    said = [other for other in values if other != value]
    if len(said) < count:
        said += rng.sample([other for other in VALUES if other not in values], count)
    return rng.sample(said, count)


def _recalled_value(rng: random.Random, read: str, facts: int) -> Task:
    relation, names, values = _facts(rng, facts)
    gold = rng.randrange(facts)
    choices = [values[gold], *_others(rng, values[gold], values, 3)]
    rng.shuffle(choices)
    place = choices.index(values[gold])
    if read == "sequence":
        choices = [fact(relation, names[gold], value) for value in choices]
    question = _choice(f"What is the {relation} of {names[gold]}?", choices, read)
    return Task(_text(relation, names, values), question, place)


def _recalled_truth(rng: random.Random, gold: int, facts: int) -> Task:
    relation, names, values = _facts(rng, facts)
    place = rng.randrange(facts)
    said = values[place] if gold == 0 else _others(rng, values[place], values, 1)[0]
    asked = f"Is the {relation} of {names[place]} {said}?"
    return Task(_text(relation, names, values), {"type": "predicate", "instructions": asked}, gold)


def _counted(rng: random.Random) -> Task:
    name, number = rng.choice(NAMES), rng.randrange(10)
    while not is_held_out(count_key(name, number)):
        name, number = rng.choice(NAMES), rng.randrange(10)
    asked = {"type": "score", "instructions": f"How many has {name}?", "levels": _LEVELS}
    return Task(f"The number of {name} is {number}.", asked, number)


def _world(rng: random.Random) -> Task:
    known, wording = fact_and_wording(rng)
    while known.topic in ("after", "before") or not is_held_out(fact_key(known, wording)):
        known, wording = fact_and_wording(rng)
    answers = [known.answer, *rng.sample(other_answers(known), 3)]
    rng.shuffle(answers)
    choices = [statement(replace(known, answer=answer)) for answer in answers]
    asked = _choice(question(known, wording), choices, "sequence")
    return Task(rng.choice(FILLER), asked, answers.index(known.answer))


def _choice(asked: str, values: list[str], read: str) -> dict[str, Any]:
    return {
        "type": "choice",
        "instructions": asked,
        "choices": [{"value": value} for value in values],
        "read": read,
    }
