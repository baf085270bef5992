"""Recall of key-value facts from the context: plain sentences, filler between, questions after."""

from __future__ import annotations

import random

from .sample import Message, Sample, turn
from .words import FILLER, NAMES, RELATIONS, VALUES

_FIRST = (
    "{facts} What is the {relation} of {name}?",
    "{facts}\nWhat is the {relation} of {name}?",
    "{facts}\n\nWhat is the {relation} of {name}?",
    "{facts} Tell me the {relation} of {name}.",
    "{facts} The {relation} of {name}?",
    "Read this: {facts} What is the {relation} of {name}?",
    "Here are some facts. {facts} What is the {relation} of {name}?",
)
_NEXT = (
    "What is the {relation} of {name}?",
    "And the {relation} of {name}?",
    "Tell me the {relation} of {name}.",
    "And {name}?",
)


def fact(relation: str, name: str, value: str) -> str:
    return f"The {relation} of {name} is {value}."


def recall(
    rng: random.Random,
    facts: int,
    questions: int = 1,
    *,
    filler: int = 0,
    numbers: float = 0.1,
) -> Sample:
    """`facts` sentences in one user turn, then `questions` turns that ask for some of them.

    filler: sentences about nothing between the facts; numbers: share of the samples whose values
    are two-digit numbers instead of words.
    """
    relation = rng.choice(RELATIONS)
    names = rng.sample(NAMES, facts)
    values = _values(rng, facts, rng.random() < numbers)
    known = [fact(relation, name, value) for name, value in zip(names, values, strict=True)]
    sentences = list(known)
    for _ in range(filler):
        sentences.insert(rng.randrange(len(sentences) + 1), rng.choice(FILLER))
    text = rng.choice((" ", " ", "\n")).join(sentences)
    asked = rng.sample(range(facts), min(questions, facts))
    messages: list[Message] = []
    for position, index in enumerate(asked):
        phrase = rng.choice(_FIRST if position == 0 else _NEXT)
        question = phrase.format(facts=text, relation=relation, name=names[index])
        messages += turn(question, known[index])
    return Sample(f"recall {messages[0]['content']}", messages)


def pairs(rng: random.Random, count: int) -> Sample:
    """Names and values, asked for again in another order: recall with hardly a word around it."""
    known = list(zip(rng.sample(NAMES, count), rng.choices(VALUES, k=count), strict=True))
    given = ", ".join(f"{name} {value}" for name, value in known)
    rng.shuffle(known)
    again = ", ".join(f"{name} {value}" for name, value in known)
    asked = rng.choice(("Pairs: {p}.", "Say these pairs in another order: {p}."))
    return Sample(f"pairs {given}", turn(asked.format(p=given), f"Pairs: {again}."))


def _values(rng: random.Random, count: int, as_numbers: bool) -> list[str]:
    if as_numbers:
        return [str(rng.randrange(10, 100)) for _ in range(count)]
    return rng.choices(VALUES, k=count)
