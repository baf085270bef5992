"""Answers that the request holds to something: forced calls, JSON, and a thought before.

Held out as those of checks.py: by the numbers of a sum, the whole text or the fact and wording.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from .checks import Answer, Check, check_of, is_call_of, is_sum_of
from .json_talk import PLAIN_KEY, asked, json_in_words, json_unasked
from .recall import recall
from .sample import Message, Sample, draw, turn
from .sums import sums
from .tools import forced_use

_OFFERED = 3
_FACTS = 8
_THINK = {"chat_template_kwargs": {"enable_thinking": True}}


def constrained_checks(count: int) -> list[Check]:
    """`count` held-out prompts of each kind."""
    rng = random.Random("held")
    makers = (_required, _named, _in_words, _json_object, _json_schema, _thoughtful)
    return [make(rng) for make in makers for _ in range(count)]


def schema_of(fields: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of an object with just these fields and values of their types."""
    return {
        "type": "object",
        "properties": {name: _type_of(value) for name, value in fields.items()},
        "required": list(fields),
        "additionalProperties": False,
    }


def _type_of(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"type": "array", "items": {"type": "string"}}
    return {"type": "integer" if isinstance(value, int) else "string"}


def _required(rng: random.Random) -> Check:
    sample = draw(lambda rng: forced_use(rng, _OFFERED), rng, held_out=True)
    return check_of("required", sample, is_call_of(sample), tool_choice="required")


def _named(rng: random.Random) -> Check:
    sample = draw(lambda rng: forced_use(rng, _OFFERED), rng, held_out=True)
    name = sample.messages[1]["tool_calls"][0]["function"]["name"]
    choice = {"type": "function", "function": {"name": name}}
    return check_of("named", sample, is_call_of(sample), tool_choice=choice)


def _in_words(rng: random.Random) -> Check:
    sample = draw(json_in_words, rng, held_out=True)
    return check_of("json_words", sample, _is_just(_fields(sample)))


def _json_object(rng: random.Random) -> Check:
    """A question with one answer; any key is right, and more than is asked for is, too."""
    sample = draw(_plain_question, rng, held_out=True)
    expected = list(_fields(sample).values())
    held = {"response_format": {"type": "json_object"}}
    return check_of("json_object", sample, _has(expected), **held)


def _plain_question(rng: random.Random) -> Sample:
    while (one := asked(rng)).plain is None:
        pass
    return Sample(one.key, turn(one.question, json.dumps({PLAIN_KEY: one.plain})))


def _json_schema(rng: random.Random) -> Check:
    sample = draw(json_unasked, rng, held_out=True)
    fields = _fields(sample)
    schema = {"name": "answer", "schema": schema_of(fields), "strict": True}
    held = {"response_format": {"type": "json_schema", "json_schema": schema}}
    return check_of("json_schema", sample, _is_just(fields), **held)


def _thoughtful(rng: random.Random) -> Check:
    """A sum, one of some facts or a tool call; the answer is the same as without a thought."""
    kind = rng.randrange(3)
    if kind == 0:
        sample = draw(lambda rng: sums(rng, digits=2), rng, held_out=True)
        return check_of("thinking", sample, is_sum_of(sample), **_THINK)
    if kind == 1:
        sample = draw(lambda rng: recall(rng, _FACTS), rng, held_out=True)
        said = sample.messages[1]["content"]
        return check_of("thinking", sample, lambda answer: answer.content == said, **_THINK)
    sample = draw(lambda rng: forced_use(rng, _OFFERED), rng, held_out=True)
    return check_of("thinking", sample, is_call_of(sample), **_THINK)


def _fields(sample: Sample) -> dict[str, Any]:
    told: Message = sample.messages[-1]
    fields: dict[str, Any] = json.loads(told["content"])
    return fields


def _is_just(fields: dict[str, Any]) -> Callable[[Answer], bool]:
    return lambda answer: _read(answer.content) == fields


def _has(values: list[Any]) -> Callable[[Answer], bool]:
    def judge(answer: Answer) -> bool:
        found = _read(answer.content)
        return isinstance(found, dict) and all(value in found.values() for value in values)

    return judge


def _read(text: str) -> Any:
    """JSON; None for what is none."""
    try:
        return json.loads(text)
    except ValueError:
        return None
