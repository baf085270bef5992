"""Questions about mlx_parallm itself: one family of questions for each answer.

A family has questions that are trained (varied by prefixes, synonyms and dropped words) and two
that are only evaluated. `ask` never returns a question of the second kind.
"""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .sample import Sample, turn


@dataclass(frozen=True, slots=True)
class Family:
    """answer: what is taught; must: what an answer has to contain to be counted as right."""

    answer: str
    must: tuple[str, ...]
    asked: tuple[str, ...]
    held_out: tuple[str, ...]


def _read(path: Path) -> tuple[Family, ...]:
    families = tomllib.loads(path.read_text())["family"]
    return tuple(Family(**{key: _frozen(value) for key, value in one.items()}) for one in families)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


FAMILIES = _read(Path(__file__).with_name("house.toml"))

_SYNONYMS = (
    ("the server", "mlx_parallm", "this server"),
    ("endpoint", "route", "path", "URL", "address"),
    ("option", "flag", "setting", "switch", "argument"),
    ("start", "run", "launch"),
    ("starts", "runs", "launches"),
    ("started", "launched"),
    ("do I", "can I", "could I"),
    ("change", "set", "choose", "pick"),
    ("how do I", "how can I", "how could one", "how to", "how does one", "how would I"),
    ("what is", "what's", "tell me", "name", "give me"),
    ("which", "what"),
    ("is there", "do you have", "does it have"),
    ("my own model", "another model", "a different model", "some other model"),
    ("get", "obtain", "receive", "see"),
)
_PREFIXES = (
    "",
    "",
    "",
    "",
    "",
    "Please tell me: ",
    "Hi. ",
    "Hello! ",
    "A question: ",
    "I want to know: ",
    "Can you tell me: ",
    "I am new here. ",
    "Sorry, ",
    "Quick question: ",
)
_DROPPABLE = frozenset("the a an do does is are of to in for on i can please me my it its".split())


def normal(question: str) -> str:
    """A question without case, punctuation and spaces: the identity of a wording."""
    return re.sub(r"[^a-z0-9/_-]+", " ", question.lower()).strip()


_HELD_OUT = frozenset(normal(question) for family in FAMILIES for question in family.held_out)


def house(rng: random.Random) -> Sample:
    family = rng.choice(FAMILIES)
    question = ask(rng, family)
    while normal(question) in _HELD_OUT:
        question = ask(rng, family)
    return Sample("taught", turn(question, family.answer))


def ask(rng: random.Random, family: Family) -> str:
    question = rng.choice(family.asked)
    for group in _SYNONYMS:
        if rng.random() < 0.35:
            question = _exchange(rng, question, group)
    if rng.random() < 0.35:
        question = _drop_words(rng, question)
    question = rng.choice(_PREFIXES) + question
    if rng.random() < 0.15:
        question = question.lower()
    return question.rstrip("?.") if rng.random() < 0.15 else question


def _exchange(rng: random.Random, question: str, group: tuple[str, ...]) -> str:
    for word in group:
        pattern = re.compile(rf"\b{re.escape(word)}\b", re.IGNORECASE)
        if found := pattern.search(question):
            new = rng.choice(group)
            if found.group()[0].isupper():
                new = new[0].upper() + new[1:]
            return question[: found.start()] + new + question[found.end() :]
    return question


def _drop_words(rng: random.Random, question: str) -> str:
    words = question.split()
    kept = [w for w in words if w.lower() not in _DROPPABLE or rng.random() < 0.5]
    if len(kept) > 3 and rng.random() < 0.3:
        kept.pop(rng.randrange(len(kept)))
    return " ".join(kept or words)
