"""Typed questions as /v1/decisions puts them: the answer is a letter, a digit, yes or no."""

from __future__ import annotations

import random

from mlx_parallm.server.decisions.question import Option, Question, about

from .knowledge import (
    Fact,
    fact_and_wording,
    fact_key,
    other_answers,
    question,
    statement,
)
from .recall import fact
from .sample import Sample, turn
from .words import FILLER, NAMES, RELATIONS, VALUES

YES_NO = (Option("yes"), Option("no"))


def decision(rng: random.Random) -> Sample:
    """A question about a text, or about the small world."""
    makers = (recalled_value, recalled_truth, counted, known_value, known_truth)
    return rng.choices(makers, (5, 4, 2, 2, 1))[0](rng)


def recalled_value(rng: random.Random) -> Sample:
    """Which of some values has one of some names?"""
    relation, names, values = _facts(rng, _few(rng))
    place = rng.randrange(len(names))
    others = [value for value in values if value != values[place]]
    if len(others) < 3 or rng.random() < 0.2:
        others += rng.sample([value for value in VALUES if value not in values], 4)
    choices = [values[place], *rng.sample(others, min(len(others), rng.randrange(1, 6)))]
    rng.shuffle(choices)
    asked = f"What is the {relation} of {names[place]}?"
    return _choice(_text(rng, relation, names, values), asked, choices, values[place])


def recalled_truth(rng: random.Random) -> Sample:
    """Was this said?"""
    relation, names, values = _facts(rng, _few(rng))
    place = rng.randrange(len(names))
    is_true = rng.random() < 0.5
    others = [value for value in values if value != values[place]]
    if len(others) == 0 or rng.random() < 0.2:
        others = [value for value in VALUES if value not in values]
    said = values[place] if is_true else rng.choice(others)
    text = _text(rng, relation, names, values)
    return _yes_no(text, f"Is the {relation} of {names[place]} {said}?", is_true)


def count_key(name: str, number: int) -> str:
    """What decides the split of `counted`."""
    return f"decision {name} {number}"


def counted(rng: random.Random) -> Sample:
    """Which digit stands in the text?"""
    name, count = rng.choice(NAMES), rng.randrange(3, 11)
    number = rng.randrange(count)
    levels = tuple(Option(str(level)) for level in range(count))
    one = Question("", "score", f"How many has {name}?", levels)
    asked = about(f"The number of {name} is {number}.", one)
    return Sample(count_key(name, number), turn(asked, str(number)))


def known_value(rng: random.Random) -> Sample:
    """Which of some answers has a fact of the small world?"""
    known, wording = fact_and_wording(rng)
    others = other_answers(known)
    choices = [known.answer, *rng.sample(others, min(len(others), 3))]
    rng.shuffle(choices)
    sample = _choice(rng.choice(FILLER), question(known, wording), choices, known.answer)
    return Sample(fact_key(known, wording), sample.messages)


def known_truth(rng: random.Random) -> Sample:
    """Is this sentence of the small world true?"""
    known, wording = fact_and_wording(rng)
    is_true = rng.random() < 0.5
    said = known.answer if is_true else rng.choice(other_answers(known))
    sentence = statement(Fact(known.topic, known.subject, said))
    sample = _yes_no(rng.choice(FILLER), f"Is this true? {sentence}", is_true)
    return Sample(fact_key(known, wording), sample.messages)


def _few(rng: random.Random) -> int:
    """How many facts a text has; mostly one, where the answer has only to be seen."""
    return rng.choice((1, 1, 1, 1, 1, 2, 3, 6))


def _facts(rng: random.Random, count: int) -> tuple[str, list[str], list[str]]:
    """(relation, names, values)"""
    return rng.choice(RELATIONS), rng.sample(NAMES, count), rng.sample(VALUES, count)


def _text(rng: random.Random, relation: str, names: list[str], values: list[str]) -> str:
    said = [fact(relation, n, v) for n, v in zip(names, values, strict=True)]
    if rng.random() < 0.2:
        said.insert(rng.randrange(len(said) + 1), rng.choice(FILLER))
    return " ".join(said)


def _choice(text: str, asked: str, choices: list[str], right: str) -> Sample:
    one = Question("", "choice", asked, tuple(Option(choice) for choice in choices))
    said = about(text, one)
    return Sample(f"decision {said}", turn(said, one.labels[choices.index(right)]))


def _yes_no(text: str, asked: str, is_true: bool) -> Sample:
    one = Question("", "yes_no", asked, YES_NO)
    said = about(text, one)
    return Sample(f"decision {said}", turn(said, one.labels[0 if is_true else 1]))
