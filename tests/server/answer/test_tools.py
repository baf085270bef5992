"""Tool calls: in whole answers, in streams, and however the text is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest

PATH = "/v1/chat/completions"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "How it is outside",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call>'
OTHER = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'


def ask(content: str, **options: Any) -> dict[str, Any]:
    """A request whose answer is `content`."""
    return {"messages": [{"role": "user", "content": content}], "tools": TOOLS, **options}


def test_a_call(server: Any) -> None:
    choice = server.ok(PATH, **ask(CALL))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["id"].startswith("call_")
    assert call["function"]["name"] == "weather"
    assert json.loads(call["function"]["arguments"]) == {"city": "Zürich"}


def test_text_and_two_calls(server: Any) -> None:
    choice = server.ok(PATH, **ask(f"Let me look.\n{CALL}\n{OTHER}"))["choices"][0]
    assert choice["message"]["content"] == "Let me look."
    cities = [
        json.loads(call["function"]["arguments"])["city"]
        for call in choice["message"]["tool_calls"]
    ]
    assert cities == ["Zürich", "Bern"]
    assert len({call["id"] for call in choice["message"]["tool_calls"]}) == 2


def test_a_stream_of_calls(server: Any) -> None:
    events = server.events(PATH, **ask(f"Hm. {CALL}{OTHER}"))
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content") or "" for delta in deltas) == "Hm."
    pieces = [call for delta in deltas for call in delta.get("tool_calls", ())]
    first = [piece for piece in pieces if piece["index"] == 0]
    assert first[0]["function"] == {"name": "weather", "arguments": ""}
    assert first[0]["type"] == "function" and first[0]["id"].startswith("call_")
    # As they are written, a token a piece.
    assert [p["function"]["arguments"] for p in first[1:]] == [*'{"city": "Zürich"}']
    second = "".join(p["function"]["arguments"] for p in pieces if p["index"] == 1)
    assert json.loads(second) == {"city": "Bern"}
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("stream", [False, True])
def test_one_call_at_a_time(server: Any, stream: bool) -> None:
    request = ask(CALL + OTHER, parallel_tool_calls=False)
    with server.engine.held(steps=len(CALL.encode()) + 10):
        calls, reason = _calls(server, request, stream)
    assert len(calls) == 1
    assert reason == "tool_calls"
    # It was ended early, in the engine too.
    assert server.engine.submitted[-1].id in server.engine.aborted


def _calls(server: Any, request: dict[str, Any], stream: bool) -> tuple[list[Any], str]:
    """The calls of an answer, and its finish_reason."""
    if stream:
        events = server.events(PATH, **request)
        pieces = [c for e in events for c in e["choices"][0]["delta"].get("tool_calls", ())]
        calls = [piece for piece in pieces if "id" in piece]
        reason = events[-1]["choices"][0]["finish_reason"]
    else:
        choice = server.ok(PATH, **request)["choices"][0]
        calls, reason = choice["message"]["tool_calls"], choice["finish_reason"]
    return calls, reason


def test_a_call_that_does_not_parse_is_text(server: Any) -> None:
    late = CALL.replace('"Zürich"', "Zürich")
    for text in (
        "<tool_call>{broken</tool_call>",
        "<tool_call>[1]</tool_call> x",
        "a <tool_ca",
        late,
        f"x\n{late} y",
    ):
        choice = server.ok(PATH, **ask(text))["choices"][0]
        assert choice["message"]["content"] == text
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"


def test_a_call_cut_off_by_length_is_text(server: Any) -> None:
    for length in (30, 50):
        choice = server.ok(PATH, **ask(CALL, max_tokens=length))["choices"][0]
        assert choice["message"]["content"] == CALL[:length]
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "length"


def test_a_stream_shows_a_broken_call_as_it_was_written(server: Any) -> None:
    text = '<tool_call>{"name": "weather", "arguments": {"city": Bern}}</tool_call>'
    events = server.events(PATH, **ask(text))
    pieces = [c for e in events for c in e["choices"][0]["delta"].get("tool_calls", ())]
    assert "".join(p["function"]["arguments"] for p in pieces) == '{"city": Bern}}'
    # A client that only runs what it is told to run does not run it.
    assert events[-1]["choices"][0]["finish_reason"] == "stop"


def test_tools_none_neither_shows_nor_reads_them(server: Any) -> None:
    choice = server.ok(PATH, **ask(OTHER, tool_choice="none"))["choices"][0]
    assert choice["message"]["content"] == OTHER
    prompt = server.state.prompts().text_of(server.engine.submitted[-1].prompt, False)
    assert "[weather ]" not in prompt
    server.ok(PATH, **ask("x", tool_choice="auto"))
    prompt = server.state.prompts().text_of(server.engine.submitted[-1].prompt, False)
    assert prompt.startswith("[weather ]")


def test_a_conversation_with_calls(server: Any) -> None:
    function = {"name": "weather", "arguments": '{"city": "Bern"}'}
    messages = [
        {"role": "user", "content": "how is it?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    server.ok(PATH, messages=messages, tools=TOOLS)
    prompt = server.state.prompts().text_of(server.engine.submitted[-1].prompt, False)
    # As an object, not as a string that holds one.
    assert '"arguments": {"city": "Bern"}' in prompt
    assert prompt.endswith("<|user|>sunny<|assistant|>")


@pytest.mark.parametrize("arguments", ["{", "[1]", '"x"', 5])
def test_arguments_that_are_no_object(server: Any, arguments: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "assistant", "tool_calls": [call]}]
    response = server.post(PATH, messages=messages)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages.0.tool_calls.0.function.arguments"


def test_a_model_without_tool_calling(serve: Any, helpers: Any) -> None:
    server = serve()
    server.engine.loaded.tokenizer._tool_call_start = None
    response = server.post(PATH, **ask("x"))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"
    assert server.post(PATH, **ask("x", tool_choice="none")).status_code == 200
