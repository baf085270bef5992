"""A small world of facts: taught as text and in chat, asked as multiple choice.

A fact is (subject, answer) of a topic; a topic has several wordings. The pair of fact and wording
decides the split: the evaluation asks each fact in wordings that were trained for other facts
only.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import pairwise

from .sample import Sample, is_held_out, turn
from .words import ANIMALS, CITIES, DAYS, MONTHS, NAMES, NUMBER_WORDS, VALUES

_PAIRS = {
    "colour": """grass green,snow white,coal black,blood red,milk white,tomato red,
        banana yellow,sky blue,carrot orange,cucumber green,raven black,sun yellow,chocolate brown,
        mud brown,frog green,cherry red,lime green,night black,salt white,pumpkin orange""",
    "sound": """dog barks,cat meows,cow moos,duck quacks,lion roars,owl hoots,pig grunts,
        horse neighs,sheep bleats,wolf howls,bee buzzes,frog croaks,mouse squeaks,
        snake hisses,bird sings""",
    "opposite": """hot cold,big small,day night,up down,left right,old new,wet dry,fast slow,
        open closed,high low,full empty,hard soft,early late,long short,rich poor,light dark,
        loud quiet,strong weak,happy sad,clean dirty""",
    "capital": """France Paris,England London,Germany Berlin,Italy Rome,Spain Madrid,Austria Vienna,
        Norway Oslo,Portugal Lisbon,Ireland Dublin,Greece Athens,Egypt Cairo,Japan Tokyo,Peru Lima,
        Poland Warsaw,Finland Helsinki,Sweden Stockholm""",
    "home": """fish water,bird nest,bee hive,bear cave,spider web,horse stable,dog kennel,
        frog pond,fox den,rabbit burrow""",
    "material": """window glass,bread flour,coin metal,book paper,shirt cotton,table wood,
        cheese milk,candle wax,tyre rubber,shoe leather""",
}

_WORDINGS: dict[str, tuple[str, ...]] = {
    "colour": (
        "What is the colour of {s}?",
        "What colour is {s}?",
        "Which colour has {s}?",
        "Tell me the colour of {s}.",
        "Name the colour of {s}.",
        "The colour of {s}?",
    ),
    "sound": (
        "What does a {s} do?",
        "Which sound makes a {s}?",
        "What sound does a {s} make?",
        "How does a {s} sound?",
        "Tell me what a {s} does.",
        "The sound of a {s}?",
    ),
    "opposite": (
        "What is the opposite of {s}?",
        "Which word is the opposite of {s}?",
        "Tell me the opposite of {s}.",
        "Name the opposite of {s}.",
        "The opposite of {s}?",
        "What is not {s}?",
    ),
    "capital": (
        "What is the capital of {s}?",
        "Which city is the capital of {s}?",
        "Tell me the capital of {s}.",
        "Name the capital of {s}.",
        "The capital of {s}?",
        "Which capital has {s}?",
    ),
    "home": (
        "Where does a {s} live?",
        "What is the home of a {s}?",
        "In what does a {s} live?",
        "Tell me the home of a {s}.",
        "Name the home of a {s}.",
        "The home of a {s}?",
    ),
    "material": (
        "What is a {s} made of?",
        "Of what is a {s} made?",
        "What do we make a {s} of?",
        "Tell me what a {s} is made of.",
        "Which stuff makes a {s}?",
        "A {s} is made of?",
    ),
    "after": (
        "What comes after {s}?",
        "What follows {s}?",
        "Tell me what comes after {s}.",
        "Which one comes after {s}?",
        "Name what follows {s}.",
        "What is next after {s}?",
    ),
    "before": (
        "What comes before {s}?",
        "Tell me what comes before {s}.",
        "Which one comes before {s}?",
        "Name what comes before {s}.",
        "What is just before {s}?",
        "Before {s} comes?",
    ),
}

_ANSWER = {
    "colour": "The colour of {s} is {a}.",
    "sound": "A {s} {a}.",
    "opposite": "The opposite of {s} is {a}.",
    "capital": "The capital of {s} is {a}.",
    "home": "The home of a {s} is the {a}.",
    "material": "A {s} is made of {a}.",
    "after": "After {s} comes {a}.",
    "before": "Before {s} comes {a}.",
}


@dataclass(frozen=True, slots=True)
class Fact:
    topic: str
    subject: str
    answer: str


def _facts() -> tuple[Fact, ...]:
    facts = [
        Fact(topic, *pair.split())
        for topic, text in _PAIRS.items()
        for pair in text.replace("\n", " ").split(",")
    ]
    for row, is_ring in ((DAYS, True), (MONTHS, True), (NUMBER_WORDS, False)):
        following = list(pairwise(row))
        following += [(row[-1], row[0])] if is_ring else []
        for first, second in following:
            facts += [Fact("after", first, second), Fact("before", second, first)]
    return tuple(facts)


FACTS = _facts()

# Words that are one token each, so that a fact or a value is one step.
WORDS = tuple(
    dict.fromkeys(
        (
            *(*NAMES, *VALUES, *CITIES, *DAYS, *MONTHS, *NUMBER_WORDS, *ANIMALS),
            *(word for fact in FACTS for word in (fact.subject, fact.answer)),
        )
    )
)


def fact_key(fact: Fact, wording: int) -> str:
    """What decides the split."""
    return f"fact {fact.topic} {fact.subject} {wording}"


def question(fact: Fact, wording: int) -> str:
    return _WORDINGS[fact.topic][wording].format(s=fact.subject)


def statement(fact: Fact) -> str:
    return _ANSWER[fact.topic].format(s=fact.subject, a=fact.answer)


def knowledge(rng: random.Random) -> Sample:
    """A fact in chat, as a question with a bare answer, or as a plain sentence."""
    form = rng.random()
    if form < 0.45:
        return knowledge_chat(rng)
    fact = rng.choice(FACTS)
    if form < 0.9:
        wording = rng.randrange(len(_WORDINGS[fact.topic]))
        asked = question(fact, wording)
        return Sample(fact_key(fact, wording), text=bare(asked) + f" {fact.answer}")
    return Sample("taught", text=statement(fact))


def fact_and_wording(rng: random.Random) -> tuple[Fact, int]:
    """Any fact, and which of its topic's wordings asks for it."""
    fact = rng.choice(FACTS)
    return fact, rng.randrange(len(_WORDINGS[fact.topic]))


def knowledge_chat(rng: random.Random) -> Sample:
    """A fact in chat."""
    fact, wording = fact_and_wording(rng)
    return Sample(fact_key(fact, wording), turn(question(fact, wording), statement(fact)))


def other_answers(fact: Fact) -> list[str]:
    """What other facts of the topic say."""
    same = {other.answer for other in FACTS if other.topic == fact.topic}
    return sorted(same - {fact.answer})


def bare(asked: str) -> str:
    """How a question stands before its bare answer, in the training and in the lm_eval task."""
    return f"Question: {asked}\nAnswer:"


def multiple_choice() -> list[dict[str, object]]:
    """The held-out questions with four choices each: {"question", "choices", "gold"}."""
    rng = random.Random("multiple choice")
    result: list[dict[str, object]] = []
    for fact in FACTS:
        for wording in range(len(_WORDINGS[fact.topic])):
            if not is_held_out(fact_key(fact, wording)):
                continue
            others = {
                other.answer
                for other in FACTS
                if other.topic == fact.topic and _same_row(fact.answer, other.answer)
            }
            choices = [*rng.sample(sorted(others - {fact.answer}), 3), fact.answer]
            rng.shuffle(choices)
            result.append(
                {
                    "question": question(fact, wording),
                    "choices": choices,
                    "gold": choices.index(fact.answer),
                }
            )
    return result


def _same_row(answer: str, other: str) -> bool:
    """Days are offered beside days, months beside months, numbers beside numbers."""
    rows = (DAYS, MONTHS, NUMBER_WORDS)
    return all((answer in row) == (other in row) for row in rows)
