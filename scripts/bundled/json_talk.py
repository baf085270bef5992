"""Answers in JSON: asked for in words, or held to by the server without a word about it.

Where the server holds an answer to a schema, the model does not see the schema: the keys come as
they come, and what it has to say is the value of each. So the keys vary here.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from .knowledge import Fact, fact_and_wording, fact_key, question
from .recall import fact
from .sample import DECISION, Message, Sample, Spans, spoken, turn
from .sums import sum_steps, thought_and_answer, two_digit_key
from .words import CITIES, NAMES, RELATIONS, VALUES

# The key of an answer where nobody names one.
PLAIN_KEY = "answer"
# Other names of a field, each of them as good.
_SAME_FIELD = {
    "name": ("name", "name", "name", "person"),
    "city": ("city", "city", "place"),
    "number": ("result", "number", "sum"),
}
_ASKED_PLAINLY = (
    "{q} Answer in JSON.",
    "{q} Answer as JSON.",
    "{q} JSON, please.",
    "{q} Reply in JSON only.",
    "Answer in JSON: {q}",
    "In JSON: {q}",
)
_ASKED_WITH_KEYS = (
    "{q} Answer in JSON with {k}.",
    "{q} Give {k} as JSON.",
    "{q} Reply with a JSON object of {k}.",
    "{q} JSON with {k}, please.",
    "Answer in JSON with {k}: {q}",
)
_ALREADY_SAID = ("Answer in JSON.", "You answer in JSON only.", "Reply in JSON.")

# What the tokens of a key and of a value weigh.
_KEY, _VALUE = 0.3, 2.0
# What the first token weighs where the server forces it: too little to be said unforced, enough
# to be the likeliest of those that begin an object.
_FORCED = 0.02

Fields = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, and what is right: key decides the split; fields in the order of the text, that
    which is asked for last; plain is its value (None: no one of them is asked for)."""

    key: str
    question: str
    fields: Fields
    plain: Any = None
    thought: str = "I read it in the text."


def asked(rng: random.Random) -> Asked:
    """A question about facts, a person, a list, a sum or the small world."""
    makers = (_recalled, _recalled, _person, _person, _people, _sum, _known, _known)
    return rng.choice(makers)(rng)


def json_in_words(rng: random.Random) -> Sample:
    """The user asks for JSON, with the keys or without."""
    one = asked(rng)
    messages, fields = _in_words(rng, one)
    return Sample(one.key, [*messages, _spoken(fields, first=DECISION, key=1.0)])


def json_unasked(rng: random.Random) -> Sample:
    """The server holds the answer to JSON, with a schema or without; nobody says so."""
    one = asked(rng)
    fields, key = one.fields, _KEY
    if rng.random() < 0.35:
        fields, key = ({PLAIN_KEY: one.plain} if one.plain is not None else fields), 1.0
    else:
        fields = _renamed(rng, _some(rng, one))
    messages = [{"role": "user", "content": one.question}]
    return Sample(one.key, [*messages, _spoken(fields, first=_FORCED, key=key)])


def remark(rng: random.Random) -> Sample:
    """A text that asks for nothing, and no JSON either."""
    one = rng.choice((_person, _people))(rng)
    return Sample(one.key, turn(one.question, "I see."))


def json_after_thinking(rng: random.Random) -> Sample:
    """JSON that is asked for in words, or a sum whose steps are in the thought."""
    one = _sum(rng, digits=2) if rng.random() < 0.5 else asked(rng)
    if rng.random() < 0.5:
        messages, fields = _in_words(rng, one)
        answer = _spoken(fields, first=DECISION, key=1.0)
    else:
        messages = [{"role": "user", "content": one.question}]
        plain = one.plain is not None and rng.random() < 0.5
        fields = {PLAIN_KEY: one.plain} if plain else _renamed(rng, _some(rng, one))
        answer = _spoken(fields, first=_FORCED, key=_KEY)
    return Sample(one.key, [*messages, {**answer, "thought": one.thought}])


def _in_words(rng: random.Random, one: Asked) -> tuple[list[Message], Fields]:
    """(what the user says, the fields of the answer)"""
    if one.plain is not None and rng.random() < 0.4:
        fields = {PLAIN_KEY: one.plain}
        if rng.random() < 0.3:
            system = {"role": "system", "content": rng.choice(_ALREADY_SAID)}
            return [system, {"role": "user", "content": one.question}], fields
        text = rng.choice(_ASKED_PLAINLY).format(q=one.question)
    else:
        fields = _renamed(rng, _some(rng, one))
        text = rng.choice(_ASKED_WITH_KEYS).format(q=one.question, k=_listed(rng, list(fields)))
    return [{"role": "user", "content": text}], fields


def _listed(rng: random.Random, keys: list[str]) -> str:
    plain = ", ".join(keys[:-1]) + (" and " if keys[1:] else "") + keys[-1]
    named = f"the key {plain}" if len(keys) == 1 else f"the keys {plain}"
    return rng.choice((plain, named))


def _some(rng: random.Random, one: Asked) -> Fields:
    """Some of the fields, in any order; that which was asked for is one of them."""
    names = list(one.fields)
    chosen = rng.sample(names, rng.randrange(1, len(names) + 1))
    if one.plain is not None and names[-1] not in chosen:
        chosen.append(names[-1])
    return {name: one.fields[name] for name in chosen}


def _renamed(rng: random.Random, fields: Fields) -> Fields:
    return {rng.choice(_SAME_FIELD.get(name, (name,))): value for name, value in fields.items()}


def _spoken(fields: Fields, *, first: float, key: float) -> Message:
    """The object; `first` is the weight of its first token, `key` that of the keys."""
    text = json.dumps(fields, ensure_ascii=False)
    spans: Spans = [(1, first)]
    at = 1
    for name, value in fields.items():
        begin = text.index(": ", at) + 1
        shown = json.dumps(value, ensure_ascii=False)
        spans += [(begin - at, key), (len(shown) + 1, _VALUE)]
        at = begin + 1 + len(shown)
        assert text[begin + 1 : at] == shown, name
    return spoken(("", 0.0)) | {"content": text, "spans": spans}


# What is asked


def _recalled(rng: random.Random) -> Asked:
    relation = rng.choice(RELATIONS)
    count = rng.randrange(1, 5)
    names = rng.sample(NAMES, count)
    numbers = rng.random() < 0.3
    values: list[Any] = (
        [rng.randrange(10, 100) for _ in names] if numbers else rng.choices(VALUES, k=count)
    )
    text = " ".join(fact(relation, n, str(v)) for n, v in zip(names, values, strict=True))
    place = rng.randrange(count)
    wording = rng.choice(("What is the {r} of {n}?", "Tell me the {r} of {n}."))
    asked = f"{text} {wording.format(r=relation, n=names[place])}"
    fields = {"name": names[place], relation: values[place]}
    return Asked(f"json {asked}", asked, fields, values[place])


_PERSON = (
    "{n} is {a} years old and lives in {c}.",
    "{n}, {a} years old, lives in {c}.",
    "{n} lives in {c} and is {a} years old.",
    "In {c} lives {n}, who is {a}.",
    "My friend {n} from {c} is {a}.",
    "{n} comes from {c}. {n} is {a} years old.",
)


def _person(rng: random.Random) -> Asked:
    name, age, city = rng.choice(NAMES), rng.randrange(10, 100), rng.choice(CITIES)
    text = rng.choice(_PERSON).format(n=name, a=age, c=city)
    return Asked(f"json {name} {age} {city}", text, {"name": name, "age": age, "city": city})


_PEOPLE = (
    "{n} were at the party.",
    "{n} came to the lake.",
    "Invite {n}.",
    "The team is {n}.",
)


def _people(rng: random.Random) -> Asked:
    names = rng.sample(NAMES, rng.randrange(2, 4))
    text = rng.choice(_PEOPLE).format(n=f"{', '.join(names[:-1])} and {names[-1]}")
    return Asked(f"json {text}", text, {"names": names})


def _sum(rng: random.Random, digits: int = 1) -> Asked:
    largest = 10 if digits == 1 else 100
    a, b = rng.randrange(largest), rng.randrange(largest)
    text = rng.choice(("What is {a} + {b}?", "What is {a} plus {b}?", "Add {a} and {b}."))
    thought, _ = thought_and_answer(sum_steps(a, b))
    field = {"number": a + b}
    return Asked(two_digit_key("+", a, b), text.format(a=a, b=b), field, a + b, thought)


def _known(rng: random.Random) -> Asked:
    known, wording = fact_and_wording(rng)
    field = {_field_of(known): known.answer}
    text = question(known, wording)
    return Asked(fact_key(known, wording), text, field, known.answer, "I know that.")


def _field_of(known: Fact) -> str:
    return {"after": "next", "before": "previous"}.get(known.topic, known.topic)
