"""tool_choice and strict: calls in each model's own format, on the bundled model."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import jsonschema_rs
import openai
import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import load_model
from mlx_parallm.server.answer import Dialect
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings

PATH = "/v1/chat/completions"
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Bern", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "wide": {"type": "boolean"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TIME: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
SCHEMAS = {"weather": WEATHER, "time": TIME}
TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": schema}}
    for name, schema in SCHEMAS.items()
]
MESSAGES = [{"role": "user", "content": "Tell me a joke."}]
FORMATS = [
    *("json_tools", "qwen3_coder", "pythonic", "mistral", "function_gemma"),
    *("glm47", "longcat", "kimi_k2", "minimax_m2"),
]


@pytest.fixture(scope="module")
def real(helpers: Any) -> Iterator[Any]:
    """A server on the bundled model."""
    engine = Engine(lambda: load_model("bundled"), EngineConfig(max_batch_size=8))
    served = helpers.Served(
        create_app(Settings(served_model_name=("bundled",)), engine), engine, 0.5
    )
    served.wait_ready()
    yield served
    served.stop()
    served.join()


@pytest.fixture
def speaks(real: Any) -> Iterator[Any]:
    """speaks(parser) lets the model write calls in the format of this parser."""
    prompts = real.state.prompts()
    tokenizer, own = prompts.tokenizer, prompts.dialect
    kept = {name: getattr(tokenizer, name) for name in ("_tool_parser", "_tool_call_start")}
    kept["_tool_call_end"] = tokenizer._tool_call_end

    def start(parser: str) -> Any:
        module = importlib.import_module(f"mlx_lm.tool_parsers.{parser}")
        tokenizer._tool_parser = module.parse_tool_call
        tokenizer._tool_call_start = module.tool_call_start
        tokenizer._tool_call_end = module.tool_call_end
        prompts.__dict__["dialect"] = Dialect(tokenizer)
        return real

    yield start
    for name, value in kept.items():
        setattr(tokenizer, name, value)
    prompts.__dict__["dialect"] = own


def ask(**options: Any) -> dict[str, Any]:
    return {"messages": MESSAGES, "tools": TOOLS, "max_tokens": 250, **options}


def named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def checked(choice: dict[str, Any]) -> list[str]:
    """The names of the calls, whose arguments are valid and beside which nothing is said."""
    assert choice["finish_reason"] == "tool_calls", choice
    assert choice["message"]["content"] is None
    calls = [call["function"] for call in choice["message"]["tool_calls"]]
    for call in calls:
        assert jsonschema_rs.is_valid(SCHEMAS[call["name"]], json.loads(call["arguments"])), call
    return [call["name"] for call in calls]


@pytest.mark.parametrize("parser", FORMATS)
def test_a_named_call_in_every_format(speaks: Any, parser: str) -> None:
    server = speaks(parser)
    for name in SCHEMAS:
        answer = server.ok(PATH, **ask(tool_choice=named(name), temperature=1.5, seed=3))
        assert checked(answer["choices"][0]) == [name]


@pytest.mark.parametrize("parser", FORMATS)
def test_one_call_at_least_in_every_format(speaks: Any, parser: str) -> None:
    request = ask(tool_choice="required", parallel_tool_calls=False, n=3, temperature=1.5, seed=1)
    for choice in speaks(parser).ok(PATH, **request)["choices"]:
        assert len(checked(choice)) == 1


def test_required_calls_are_streamed(real: Any) -> None:
    request = ask(tool_choice=named("weather"), temperature=0)
    events = real.events(PATH, **request)
    pieces = [c for e in events for c in e["choices"][0]["delta"].get("tool_calls", ())]
    written = "".join(piece["function"]["arguments"] for piece in pieces)
    assert jsonschema_rs.is_valid(WEATHER, json.loads(written)) and len(pieces) > 3
    whole = real.ok(PATH, **request)["choices"][0]["message"]["tool_calls"]
    assert whole[0]["function"]["arguments"] == written


def test_allowed_tools(real: Any) -> None:
    allowed = {"mode": "required", "tools": [named("time")]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    request = ask(tool_choice=choice, n=3, temperature=1.5, seed=1, parallel_tool_calls=False)
    for one in real.ok(PATH, **request)["choices"]:
        assert checked(one) == ["time"]
    # Under auto the model is told of these only.
    choice = {"type": "allowed_tools", "allowed_tools": {**allowed, "mode": "auto"}}
    fewer = real.ok(PATH, **ask(tool_choice=choice, max_tokens=1))["usage"]["prompt_tokens"]
    assert fewer < real.ok(PATH, **ask(max_tokens=1))["usage"]["prompt_tokens"]


def test_a_strict_tool_under_auto(real: Any) -> None:
    """The model is asked for a call, whose arguments would be others without the schema."""
    free = {"type": "object", "properties": {"code": {"type": "string"}}}
    held: dict[str, Any] = {
        **free,
        "properties": {"code": {"enum": ["XY-7"]}},
        "required": ["code"],
    }
    held["additionalProperties"] = False
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    for strict in (False, True):
        function = {"name": "get_weather", "description": "Weather of a city.", "parameters": held}
        tools = [{"type": "function", "function": {**function, "strict": strict}}]
        choice = real.ok(PATH, messages=asked, tools=tools, temperature=0)["choices"][0]
        (call,) = choice["message"]["tool_calls"]
        given = json.loads(call["function"]["arguments"])
        assert (given == {"code": "XY-7"}) == strict
    # Text stays text.
    text = real.ok(PATH, messages=MESSAGES, tools=tools, temperature=0, max_tokens=30)
    plain = real.ok(PATH, messages=MESSAGES, tools=[{**tools[0], "function": function}],
                    temperature=0, max_tokens=30)  # fmt: skip
    assert text["choices"][0]["message"]["content"] == plain["choices"][0]["message"]["content"]


@pytest.mark.parametrize("parser", ["gemma4", "kimi_k3", "minicpm5"])
def test_a_format_without_a_grammar(speaks: Any, parser: str) -> None:
    server = speaks(parser)
    response = server.post(PATH, **ask(tool_choice="required"))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"
    assert server.post(PATH, **ask(tool_choice="auto", max_tokens=2)).status_code == 200


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tool_choice": named("other")}, "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function.name"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        (
            {
                "tool_choice": "required",
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "f", "strict": True, "parameters": {"not": {}}},
                    }
                ],
            },
            "tools",
        ),
    ],
)
def test_errors(real: Any, change: dict[str, Any], param: str) -> None:
    response = real.post(PATH, **ask(**change))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


def test_forced_calls_of_the_other_apis(real: Any) -> None:
    tool = {"name": "weather", "input_schema": WEATHER}
    with anthropic.Anthropic(base_url=real.url, api_key="none", max_retries=0) as claude:
        client: Any = claude
        message = client.messages.create(
            model="bundled",
            max_tokens=100,
            messages=MESSAGES,
            tools=[tool],
            tool_choice={"type": "any", "disable_parallel_tool_use": True},
        )
    assert message.stop_reason == "tool_use"
    used = message.content[0]
    assert used.type == "tool_use" and jsonschema_rs.is_valid(WEATHER, used.input)
    function = {"type": "function", "name": "weather", "parameters": WEATHER, "strict": True}
    with openai.OpenAI(base_url=f"{real.url}/v1", api_key="none", max_retries=0) as opened:
        sdk: Any = opened
        response = sdk.responses.create(
            model="bundled",
            input="Tell me a joke.",
            tools=[function],
            tool_choice={"type": "function", "name": "weather"},
        )
    call = response.output[0]
    assert call.type == "function_call"
    assert jsonschema_rs.is_valid(WEATHER, json.loads(call.arguments))


def test_thinking_is_ended_by_its_budget(real: Any) -> None:
    request = {"messages": MESSAGES, "temperature": 0, "max_tokens": 40}
    request |= {"chat_template_kwargs": {"enable_thinking": True}}
    for budget in (1, 3):
        answer = real.ok(PATH, **request, thinking_token_budget=budget)
        assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": budget}
    assert answer["choices"][0]["message"]["reasoning"]
    held = {"structured_outputs": {"choice": ["yes", "no"]}, "thinking_token_budget": 2}
    answer = real.ok(PATH, **request, **held)
    assert answer["choices"][0]["message"]["content"] in ("yes", "no")
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_a_budget_needs_a_model_that_thinks(real: Any) -> None:
    request = {"messages": MESSAGES, "max_tokens": 4, "thinking_token_budget": 5}
    assert real.ok(PATH, **request)["usage"]["completion_tokens_details"] == {"reasoning_tokens": 0}
    prompts = real.state.prompts()
    prompts.dialect.thinking, kept = None, prompts.dialect.thinking
    try:
        response = real.post(PATH, **request)
    finally:
        prompts.dialect.thinking = kept
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "thinking_token_budget"
