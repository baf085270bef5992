"""Markers of thinking that mlx-lm does not know, and harmony; calls that are forced behind them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import jsonschema_rs
import pytest
from mlx_lm.tool_parsers import json_tools

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.answer import Dialect, harmony
from mlx_parallm.server.input.structured import gate_before_answer
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.engine import mock

pytestmark = pytest.mark.usefixtures("no_compile")

PATH = "/v1/chat/completions"
MARKERS = [("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>")]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "time", "parameters": SCHEMA}}]
MESSAGES = [{"role": "user", "content": "a"}]
ANY = {"messages": MESSAGES, "temperature": 1.5, "seed": 5, "max_tokens": 120}


def speaking(load: Callable[..., LoadedModel], names: tuple[str, ...]) -> LoadedModel:
    """A random model with more special tokens, and with calls as JSON between two texts."""
    model = load(vocab_size=mock.VOCAB + len(names))
    tokenizer = model.tokenizer
    tokenizer._tokenizer.add_special_tokens({"additional_special_tokens": list(names)})
    tokenizer._tool_parser = json_tools.parse_tool_call
    tokenizer._tool_call_start = json_tools.tool_call_start
    tokenizer._tool_call_end = json_tools.tool_call_end
    return model


def served_with(helpers: Any, load: Callable[[], LoadedModel]) -> Iterator[Any]:
    engine = Engine(load, EngineConfig(max_batch_size=4))
    served = helpers.Served(create_app(Settings(served_model_name=("m",)), engine), engine, 0.5)
    served.wait_ready()
    yield served
    served.stop()
    served.join()


@pytest.fixture(scope="module", params=MARKERS, ids=["think", "seed"])
def thinker(
    request: pytest.FixtureRequest, helpers: Any, llama_factory: Callable[..., LoadedModel]
) -> Iterator[Any]:
    """A server whose prompts open the thinking."""

    def load() -> LoadedModel:
        model = speaking(llama_factory, request.param)
        model.tokenizer.chat_template = f"{mock.TEMPLATE}{request.param[0]}"
        return model

    yield from served_with(helpers, load)


@pytest.fixture(scope="module")
def channels(helpers: Any, llama_factory: Callable[..., LoadedModel]) -> Iterator[Any]:
    """A server whose model has gpt-oss's tokens."""
    yield from served_with(helpers, lambda: speaking(llama_factory, harmony.TOKENS))


def test_thinking_is_told_apart(thinker: Any) -> None:
    answer = thinker.ok(PATH, **ANY, thinking_token_budget=7)
    message = answer["choices"][0]["message"]
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 7
    assert message["reasoning"] == message["reasoning_content"]
    marker = "THINK" if "[" in thinker.state.prompts().dialect.thinking.start else "seed:think"
    assert marker not in message["reasoning"] + message["content"]


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "time"}}])
def test_a_forced_call_comes_behind_the_thinking(thinker: Any, choice: Any) -> None:
    asked = {**ANY, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    answer = thinker.ok(PATH, **asked, thinking_token_budget=7)
    found = answer["choices"][0]
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["reasoning"] and found["message"]["content"] is None
    (call,) = found["message"]["tool_calls"]
    assert jsonschema_rs.is_valid(SCHEMA, json.loads(call["function"]["arguments"]))
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 7
    # The same, streamed.
    deltas = [
        e["choices"][0]["delta"] for e in thinker.events(PATH, **asked, thinking_token_budget=7)
    ]
    assert "".join(d.get("reasoning", "") for d in deltas) == found["message"]["reasoning"]
    pieces = [c["function"]["arguments"] for d in deltas for c in d.get("tool_calls", ())]
    assert "".join(pieces) == call["function"]["arguments"]


@pytest.mark.parametrize(
    ("fields", "param", "reason"),
    [
        ({"tools": TOOLS, "tool_choice": "required"}, "tool_choice", "channel"),
        ({"thinking_token_budget": 5}, "thinking_token_budget", "channel"),
    ],
)
def test_harmony_says_what_cannot_be_forced(
    channels: Any, fields: dict[str, Any], param: str, reason: str
) -> None:
    response = channels.post(PATH, **ANY, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param and reason in error["message"]
    assert channels.post(PATH, **ANY, tools=TOOLS).status_code == 200


def test_harmonys_answer_is_its_last_message() -> None:
    """What it thinks is free; a message that the prompt has begun holds from its first token."""
    tokenizer = mock.byte_tokenizer()
    tokenizer._tokenizer.add_special_tokens({"additional_special_tokens": list(harmony.TOKENS)})
    dialect = Dialect(tokenizer)
    start = "<|start|>assistant"
    gate = gate_before_answer(dialect, start, None)
    assert gate is not None
    assert tokenizer.decode(list(gate.marker)) == "<|channel|>final<|message|>"
    assert gate_before_answer(dialect, f"{start}<|channel|>analysis<|message|>Hm", None) == gate
    assert gate_before_answer(dialect, f"{start}<|channel|>final<|message|>So", None) is None
