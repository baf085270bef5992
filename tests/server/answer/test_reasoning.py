"""Thinking apart from the answer, in every API; the prompt's end; echo."""

from __future__ import annotations

import json
from typing import Any

import pytest

PATH = "/v1/chat/completions"
SAID = "<think>Hm, 2.</think>\n\nTwo."
TEMPLATE = (
    "{% for m in messages %}{{ '<|assistant|>' if m.role == 'assistant' else '<|user|>' }}"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is false %}"
    "<think></think>{% elif open_thinking %}<think>\n{% endif %}{% endif %}"
)


@pytest.fixture
def thinker(serve: Any) -> Any:
    """A server whose model thinks between <think> and </think>."""
    server = serve()
    tokenizer = server.engine.loaded.tokenizer
    tokenizer.chat_template = TEMPLATE
    for place, marker in (("start", "<think>"), ("end", "</think>")):
        ids = tuple(tokenizer.encode(marker, add_special_tokens=False))
        setattr(tokenizer, f"_think_{place}", marker)
        setattr(tokenizer, f"_think_{place}_tokens", ids)
    return server


def says(text: str, **options: Any) -> dict[str, Any]:
    """A request whose answer is the text."""
    return {"messages": [{"role": "user", "content": text}], **options}


def prompt_of(server: Any) -> str:
    """The text of the newest prompt."""
    return str(server.state.prompts().text_of(server.engine.submitted[-1].prompt, False))


def test_thinking_is_not_content(thinker: Any) -> None:
    answer = thinker.ok(PATH, **says(SAID))
    message = answer["choices"][0]["message"]
    assert message["content"] == "Two."
    assert message["reasoning"] == message["reasoning_content"] == "Hm, 2."
    assert answer["usage"]["completion_tokens_details"] == {"reasoning_tokens": len("Hm, 2.")}
    assert answer["usage"]["completion_tokens"] == len(SAID) + 1


def test_thinking_is_streamed(thinker: Any) -> None:
    options = {"include_usage": True}
    events = thinker.events(PATH, **says(SAID, stream_options=options))
    usage = events.pop()["usage"]
    assert usage["completion_tokens_details"] == {"reasoning_tokens": len("Hm, 2.")}
    deltas = [event["choices"][0]["delta"] for event in events]
    thoughts = [delta["reasoning"] for delta in deltas if "reasoning" in delta]
    assert thoughts == [delta["reasoning_content"] for delta in deltas if "reasoning" in delta]
    assert "".join(thoughts) == "Hm, 2." and len(thoughts) > 4
    assert "".join(delta.get("content", "") for delta in deltas) == "Two."


@pytest.mark.parametrize("stream", [False, True])
def test_thinking_can_be_left_out(thinker: Any, stream: bool) -> None:
    if stream:
        events = thinker.events(PATH, **says(SAID, include_reasoning=False))
        assert "reasoning" not in json.dumps([event["choices"][0]["delta"] for event in events])
    else:
        answer = thinker.ok(PATH, **says(SAID, include_reasoning=False))
        assert set(answer["choices"][0]["message"]) == {"role", "content", "refusal"}
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 6


def test_the_prompt_may_have_begun_to_think(thinker: Any) -> None:
    variables = {"chat_template_kwargs": {"open_thinking": True}}
    answer = thinker.ok(PATH, **says("Hm.</think>Two.", **variables))
    message = answer["choices"][0]["message"]
    assert message["reasoning"] == "Hm."
    assert message["content"].startswith("Two.")
    assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 3


def test_thinking_that_is_cut_off(thinker: Any) -> None:
    choice = thinker.ok(PATH, **says(SAID, max_tokens=10))["choices"][0]
    assert choice["message"]["reasoning"] == "Hm,"
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "length"


def test_thinking_before_a_call(thinker: Any) -> None:
    call = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
    tools = [{"type": "function", "function": {"name": "f"}}]
    message = thinker.ok(PATH, **says(f"<think>Hm.</think>\n{call}", tools=tools))["choices"][0][
        "message"
    ]
    assert (message["reasoning"], message["content"]) == ("Hm.", None)
    assert message["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({}, "<|assistant|>"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "<think></think>"),
        ({"reasoning_effort": "none"}, "<think></think>"),
        ({"reasoning_effort": "high"}, "<|assistant|>"),
    ],
)
def test_whether_to_think(thinker: Any, options: dict[str, Any], end: str) -> None:
    thinker.ok(PATH, **says("x", **options))
    assert prompt_of(thinker).endswith(end)


def test_earlier_thinking_goes_to_the_template(thinker: Any) -> None:
    for name in ("reasoning", "reasoning_content"):
        messages = [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b", name: "Hm."},
            {"role": "user", "content": "c"},
        ]
        thinker.ok(PATH, messages=messages)
        assert "<|assistant|><think>Hm.</think>b<|user|>c" in prompt_of(thinker)


def test_a_message_that_goes_on_thinking(thinker: Any) -> None:
    messages = [
        {"role": "user", "content": "rest</think>Two."},
        {"role": "assistant", "content": "<think>Hm, the "},
    ]
    message = thinker.ok(PATH, messages=messages, continue_final_message=True)["choices"][0][
        "message"
    ]
    assert prompt_of(thinker).endswith("<|assistant|><think>Hm, the ")
    # The parrot goes on with what the user said, and the message so far.
    assert message["reasoning"] == "rest"
    assert message["content"].startswith("Two.")


@pytest.mark.parametrize("stream", [False, True])
def test_echo_begins_with_the_last_message(server: Any, stream: bool) -> None:
    messages = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "So, "}]
    body = {"messages": messages, "echo": True, "continue_final_message": True}
    if stream:
        deltas = [event["choices"][0]["delta"] for event in server.events(PATH, **body)]
        assert deltas[0] == {"role": "assistant", "content": "So, "}
        text = "".join(delta.get("content", "") for delta in deltas)
    else:
        text = server.ok(PATH, **body)["choices"][0]["message"]["content"]
    assert text.startswith("So, b")
    # A new message has nothing of the last one.
    body = {"messages": [*messages, {"role": "user", "content": "b"}], "echo": True}
    assert server.ok(PATH, **body)["choices"][0]["message"]["content"] == "b"


def test_without_a_generation_prompt_the_role_is_the_last_one(server: Any) -> None:
    body = says("hi", add_generation_prompt=False, echo=True)
    message = server.ok(PATH, **body)["choices"][0]["message"]
    assert (message["role"], message["content"]) == ("user", "hihi")
    assert prompt_of(server).endswith("<|user|>hi")


# Ollama


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_ollamas_thinking(thinker: Any, path: str) -> None:
    asked = says(SAID) if path == "/api/chat" else {"prompt": SAID}
    for options in ({}, {"think": True}):
        answer = thinker.ok(path, **asked, **options, stream=False)
        shown = answer["message"] if path == "/api/chat" else answer
        assert shown["thinking"] == "Hm, 2."
        assert shown["content" if path == "/api/chat" else "response"] == "Two."
    lines = thinker.post(path, **asked).text.splitlines()
    found = [json.loads(line) for line in lines]
    pieces = [line["message"] if path == "/api/chat" else line for line in found]
    assert "".join(piece.get("thinking", "") for piece in pieces) == "Hm, 2."
    thinker.ok(path, **asked, think=False, stream=False)
    assert prompt_of(thinker).endswith("<think></think>")
    assert "thinking" in thinker.ok("/api/show", model="parrot")["capabilities"]
