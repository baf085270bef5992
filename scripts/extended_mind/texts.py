"""Texts in which a few facts are hidden among filler, in the words of the bundled model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from bundled.recall import fact
from bundled.words import FILLER, NAMES, RELATIONS, VALUES

Count = Callable[[str], int]


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a text says, and nothing but that text."""

    relation: str
    name: str
    value: str

    @property
    def sentence(self) -> str:
        """What the text says, and the right answer."""
        return fact(self.relation, self.name, self.value)

    @property
    def question(self) -> str:
        """What is asked."""
        return f"What is the {self.relation} of {self.name}?"


@dataclass(frozen=True, slots=True)
class Text:
    """A text and the facts in it, each (relation, name) once."""

    content: str
    facts: list[Fact]


def make_facts(rng: random.Random, count: int, relation: str | None = None) -> list[Fact]:
    """Facts of one relation about different names."""
    relation = relation or rng.choice(RELATIONS)
    names = rng.sample(NAMES, count)
    return [Fact(relation, name, rng.choice(VALUES)) for name in names]


def make_text(rng: random.Random, facts: list[Fact], size: int, count: Count) -> Text:
    """Facts in random places among filler.

    Args:
        size: tokens; at most so many, and a sentence less at least.
        count: tokens of a text.
    """
    lengths = {sentence: count(f" {sentence}") for sentence in FILLER}
    sentences = [known.sentence for known in facts]
    left = size - count(" ".join(sentences))
    filler: list[str] = []
    while (sentence := rng.choice(FILLER)) and lengths[sentence] <= left:
        filler.append(sentence)
        left -= lengths[sentence]
    places = set(rng.sample(range(len(facts) + len(filler)), len(facts)))
    told, rest = iter(sentences), iter(filler)
    order = [next(told if at in places else rest) for at in range(len(facts) + len(filler))]
    return Text(" ".join(order), facts)


def most_facts(size: int, count: Count) -> int:
    """How many facts surely fit into a text."""
    longest = max(count(fact(relation, NAMES[0], VALUES[0])) for relation in RELATIONS)
    return size // (longest + 1)
