"""What the bundled model shows of the server: forced calls, JSON, a thought before the answer.

A few of the prompts that scripts/eval_bundled.py asks, over HTTP: a bad set of weights is seen,
and so is a server that does not hold its answers to what was asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema_rs
import pytest
from bundled.checks import Answer, Check
from bundled.client import Client
from bundled.constrained_checks import constrained_checks

from mlx_parallm.server.main import build_engine
from mlx_parallm.settings import Settings

PATH = "/v1/chat/completions"
SUM = [{"role": "user", "content": "What is 47 + 38?"}]
THINK = {"chat_template_kwargs": {"enable_thinking": True}}
KINDS = ("required", "named", "json_words", "json_object", "json_schema", "thinking")
COUNT = 8

Answered = list[tuple[Check, Answer]]


@pytest.fixture(scope="module")
def real(helpers: Any) -> Iterator[Any]:
    """A server on the bundled model."""
    settings = Settings(served_model_name=("bundled",), log_level="warning")
    yield from helpers.until_idle(settings, build_engine(settings))


@pytest.fixture(scope="module")
def answers(real: Any) -> dict[str, Answered]:
    """Held-out prompts of each kind and their answers, all asked at once."""
    client, checks = Client(real.url), constrained_checks(COUNT)
    with ThreadPoolExecutor(len(checks)) as pool:
        said = list(pool.map(lambda c: client.chat(c.messages, c.tools, 200, **c.options), checks))
    pairs = list(zip(checks, said, strict=True))
    return {kind: [pair for pair in pairs if pair[0].group == kind] for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_held_out_prompts(answers: dict[str, Answered], kind: str) -> None:
    assert len(answers[kind]) == COUNT
    assert sum(check.judge(answer) for check, answer in answers[kind]) >= 6


@pytest.mark.parametrize("kind", ["required", "named"])
def test_a_forced_call_is_all_that_is_said(answers: dict[str, Answered], kind: str) -> None:
    for _, answer in answers[kind]:
        assert answer.finish_reason == "tool_calls" and len(answer.calls) == 1
        assert not answer.content


def test_json_keeps_to_its_schema(answers: dict[str, Answered]) -> None:
    """Right or not."""
    for check, answer in answers["json_schema"]:
        schema = check.options["response_format"]["json_schema"]["schema"]
        assert answer.finish_reason == "stop"
        assert jsonschema_rs.is_valid(schema, json.loads(answer.content))


def test_a_thought_is_short_and_apart(answers: dict[str, Answered]) -> None:
    for check, answer in answers["thinking"]:
        assert answer.thought and 1 <= answer.thought_tokens <= 40, check.messages
        assert "THINK" not in answer.thought + answer.content
    for kind in set(KINDS) - {"thinking"}:
        assert not any(answer.thought or answer.thought_tokens for _, answer in answers[kind])


def test_thinking_is_on_only_where_it_is_asked_for(real: Any) -> None:
    ways: list[dict[str, Any]] = [
        *({}, {"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_effort": "none"}),
        *(THINK, {"reasoning_effort": "low"}),
    ]
    for place, way in enumerate(ways):
        answer = real.ok(PATH, messages=SUM, temperature=0, max_tokens=60, **way)
        message = answer["choices"][0]["message"]
        assert message["content"].endswith("47 + 38 = 85.")
        assert bool(message.get("reasoning")) is (place >= 3), way
        told = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
        assert (told > 0) is (place >= 3)


def test_a_thought_is_streamed_before_the_answer(real: Any) -> None:
    events = real.events(PATH, messages=SUM, temperature=0, max_tokens=60, **THINK)
    deltas = [event["choices"][0]["delta"] for event in events if event["choices"]]
    kinds = [k for delta in deltas for k in ("reasoning", "content") if delta.get(k)]
    assert kinds == sorted(kinds, reverse=True) and set(kinds) == {"reasoning", "content"}
    whole = real.ok(PATH, messages=SUM, temperature=0, max_tokens=60, **THINK)
    message = whole["choices"][0]["message"]
    for kind in ("reasoning", "content"):
        assert "".join(delta.get(kind) or "" for delta in deltas) == message[kind]


def test_nobody_gets_json_who_did_not_ask_for_it(real: Any) -> None:
    """Not of a sum that was thought about, either, and not for a text without a question."""
    client = Client(real.url)
    said = [*(f"What is {a} + {b}?" for a in (12, 31, 47) for b in (25, 38, 60)), "Add 17 and 45."]
    said += ["Mira is 34 years old and lives in Paris.", "Invite Jonas and Henry."]
    with ThreadPoolExecutor(len(said)) as pool:
        answers = list(
            pool.map(lambda t: client.chat([{"role": "user", "content": t}], [], 80, **THINK), said)
        )
    assert sum(answer.content.startswith("{") for answer in answers) <= 1


def test_json_after_a_thought(real: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"answer": {"type": "integer"}},
        "required": ["answer"],
        "additionalProperties": False,
    }
    held = {"type": "json_schema", "json_schema": {"name": "sum", "schema": schema}}
    answer = real.ok(PATH, messages=SUM, temperature=0, response_format=held, **THINK)
    message = answer["choices"][0]["message"]
    assert json.loads(message["content"]) == {"answer": 85}
    assert "7 + 8 = 15" in message["reasoning"]


def test_only_the_prompt_opens_a_thought(real: Any) -> None:
    """The template does where it is asked to. An answer that is held to something begins with it,
    however much the model would like to think."""
    opener = real.ok("/tokenize", prompt="[THINK]", add_special_tokens=False)["tokens"]
    assert len(opener) == 1
    request = {"messages": SUM, "logit_bias": {str(opener[0]): 100}, "temperature": 0}
    held = {"structured_outputs": {"choice": ["yes", "no"]}}
    message = real.ok(PATH, **request, **held)["choices"][0]["message"]
    assert message["content"] in ("yes", "no") and not message.get("reasoning")
