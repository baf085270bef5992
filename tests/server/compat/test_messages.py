"""Anthropic's API: the real SDK, and what Claude Code sends."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

anthropic = pytest.importorskip("anthropic")

PATH = "/v1/messages"
TOOL = {
    "name": "weather",
    "description": "How it is outside",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call>'


@pytest.fixture
def connect() -> Iterator[Callable[..., Any]]:
    """connect(server, key) gives a client of it."""
    made: list[Any] = []

    def make(server: Any, key: str = "none") -> Any:
        made.append(anthropic.Anthropic(base_url=server.url, api_key=key, max_retries=0))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(server: Any, connect: Any) -> Any:
    return connect(server)


def says(text: str, **options: Any) -> dict[str, Any]:
    """A request whose answer is the text."""
    messages = [{"role": "user", "content": text}]
    return {"model": "parrot", "max_tokens": 200, "messages": messages, **options}


def prompt_of(server: Any) -> str:
    return str(server.state.prompts().text_of(server.engine.submitted[-1].prompt, False))


def test_an_answer(client: Any) -> None:
    message = client.messages.create(**says("Hello."))
    assert message.type == "message" and message.role == "assistant"
    assert [block.text for block in message.content] == ["Hello."]
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens == 8
    assert message.usage.output_tokens == 7


def test_how_an_answer_ends(client: Any) -> None:
    message = client.messages.create(**says("a b c", stop_sequences=[" c"]))
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", " c")
    assert message.content[0].text == "a b"
    message = client.messages.create(**says("abc", max_tokens=2))
    assert (message.stop_reason, message.content[0].text) == ("max_tokens", "ab")


def test_more_tokens_than_there_is_room_for(client: Any, server: Any) -> None:
    assert client.messages.create(**says("abc", max_tokens=4000)).content[0].text == "abc"
    assert server.engine.submitted[-1].params.max_tokens == 512 - 5


def test_a_tool_and_its_result(client: Any, server: Any) -> None:
    asked = says(f"I look.\n{CALL}", tools=[TOOL])
    message = client.messages.create(**asked)
    text, use = message.content
    assert (text.text, use.name, use.input) == ("I look.", "weather", {"city": "Bern"})
    assert message.stop_reason == "tool_use" and use.id.startswith("toolu_")
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}
    messages = [
        *asked["messages"],
        message.to_param(),
        {"role": "user", "content": [result, {"type": "text", "text": "Well?"}]},
    ]
    client.messages.create(**{**asked, "messages": messages})
    prompt = prompt_of(server)
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Bern"}}</tool_call>'
    assert prompt.endswith(f"<|assistant|>I look.{call}<|user|>sunny<|user|>Well?<|assistant|>")


def test_a_stream(client: Any) -> None:
    with client.messages.stream(**says(f"I look.\n{CALL}", tools=[TOOL])) as stream:
        events = list(stream)
        final = stream.get_final_message()
    assert final.content[1].input == {"city": "Bern"}
    assert final.stop_reason == "tool_use" and final.usage.output_tokens > 50
    partial = [event.partial_json for event in events if event.type == "input_json"]
    assert "".join(partial) == '{"city": "Bern"}' and len(partial) > 10


def test_the_events_of_a_stream(server: Any) -> None:
    lines = server.post(PATH, **says(f"Hm. {CALL}", tools=[TOOL], stream=True)).text.split("\n\n")
    pairs = [line.split("\n") for line in lines if line]
    names = [name.removeprefix("event: ") for name, _ in pairs]
    datas = [json.loads(data.removeprefix("data: ")) for _, data in pairs]
    assert names == [data["type"] for data in datas]
    runs = [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    ending = ["message_delta", "message_stop"]
    assert runs == ["message_start", "ping", *block, *block, *ending]
    assert [data["index"] for data in datas if data["type"] == "content_block_start"] == [0, 1]


def test_thinking(thinker: Any, connect: Any) -> None:
    client = connect(thinker)
    asked = says("<think>Hm.</think>Yes.", thinking={"type": "adaptive"})
    message = client.messages.create(**asked)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert (message.content[0].thinking, message.content[1].text) == ("Hm.", "Yes.")
    assert message.usage.output_tokens_details.thinking_tokens == 3
    with client.messages.stream(**asked) as stream:
        streamed = stream.get_final_message().content
    assert streamed[0] == message.content[0]
    assert streamed[1].text == "Yes."
    follow = [*asked["messages"], message.to_param(), {"role": "user", "content": "And?"}]
    client.messages.create(**{**asked, "messages": follow})


def test_an_answer_may_be_begun(client: Any, server: Any) -> None:
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "So"}]
    client.messages.create(model="parrot", max_tokens=5, messages=messages)
    assert prompt_of(server).endswith("<|user|>x<|assistant|>So")


def test_count_tokens(client: Any, server: Any) -> None:
    asked = {"model": "parrot", "messages": says("Hello.")["messages"], "system": "Be kind."}
    counted = client.messages.count_tokens(**asked).input_tokens
    client.messages.create(**asked, max_tokens=1)
    assert counted == len(server.engine.submitted[-1].prompt)
    assert client.messages.count_tokens(**asked, tools=[TOOL]).input_tokens > counted


def _recorded(hash_: str) -> dict[str, Any]:
    """A request as Claude Code 2.1 sends it, shortened."""
    cached = {"cache_control": {"type": "ephemeral"}}
    billing = f"x-anthropic-billing-header: cc_version=2.1.1; cc_entrypoint=cli; cch={hash_};"
    return {
        "model": "parrot",
        "max_tokens": 32_000,
        "stream": True,
        "system": [
            {"type": "text", "text": billing},
            {"type": "text", "text": "You are a coder.", **cached},
        ],
        "messages": [
            {"role": "system", "content": "Use few words."},
            {"role": "user", "content": [{"type": "text", "text": "First.", **cached}]},
            {"role": "user", "content": [{"type": "text", "text": "Say hi.", **cached}]},
        ],
        "tools": [
            {**TOOL, "name": "Bash", "eager_input_streaming": True},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        "metadata": {"user_id": "user_1"},
        "thinking": {"type": "adaptive"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "medium"},
    }


def test_what_claude_code_sends(server: Any) -> None:
    assert server.http.head("/").status_code == 200
    prompts = []
    for hash_ in ("a1b2c", "d3e4f"):
        headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "claude-code-20250219"}
        response = server.http.post(f"{PATH}?beta=true", json=_recorded(hash_), headers=headers)
        assert response.status_code == 200, response.text
        assert "text/event-stream" in response.headers["content-type"]
        assert '"type":"message_stop"' in response.text
        prompts.append(prompt_of(server))
    # The same from the first token on: the prefix cache can find it.
    assert prompts[0] == prompts[1]
    said = "<|user|>You are a coder.\nUse few words.<|user|>First.\nSay hi.<|assistant|>"
    assert prompts[0] == f"[Bash ]{said}"


@pytest.mark.parametrize(
    ("change", "status", "kind"),
    [
        ({"max_tokens": 0}, 400, "invalid_request_error"),
        ({"max_tokens": None}, 400, "invalid_request_error"),
        ({"messages": []}, 400, "invalid_request_error"),
        ({"model": "other"}, 404, "not_found_error"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            400,
            "invalid_request_error",
        ),
        ({"tool_choice": {"type": "maybe"}}, 400, "invalid_request_error"),
    ],
)
def test_errors(server: Any, change: dict[str, Any], status: int, kind: str) -> None:
    response = server.post(PATH, **{**says("x"), **change})
    assert response.status_code == status, response.text
    answer = response.json()
    assert answer["type"] == "error"
    assert answer["error"]["type"] == kind
    assert set(answer["error"]) == {"type", "message"}


def test_an_error_is_the_sdks(client: Any) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**says("x"), "model": "other"})
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        client.messages.create(**says("x" * 600))
    source = {"type": "url", "url": "https://a.example/b.png"}
    image = [{"type": "image", "source": source}]
    with pytest.raises(anthropic.BadRequestError, match=r"content\.0\.source.*does not see"):
        client.messages.create(**says("x", messages=[{"role": "user", "content": image}]))


def test_a_server_that_cannot_answer_now_is_overloaded(serve: Any, helpers: Any) -> None:
    server = serve()
    server.engine.drain()
    response = server.post(PATH, **says("x"))
    assert response.status_code == 529
    assert response.json()["error"]["type"] == "overloaded_error"


def test_an_error_in_a_stream(server: Any, helpers: Any) -> None:
    response = server.post(PATH, **says(helpers.CURSE, stream=True))
    assert response.status_code == 500
    assert response.json()["error"]["type"] == "api_error"


def test_keys(serve: Any, connect: Any) -> None:
    server = serve(api_key=("secret",))
    refused = server.post(PATH, **says("x"))
    assert refused.status_code == 401
    assert refused.json()["error"]["type"] == "authentication_error"
    client = connect(server, "secret")
    assert client.messages.create(**says("x")).content[0].text == "x"
