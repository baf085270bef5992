"""The OpenAI SDK as the client: sync, async, streams, tools and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    """The SDK, without its own retries."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


MESSAGES: Any = [{"role": "user", "content": "Grüezi!"}]


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["parrot", "org/parrot-2"]
    assert client.models.retrieve("org/parrot-2").id == "org/parrot-2"


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="parrot", messages=MESSAGES, n=2, logprobs=True, top_logprobs=3, seed=7
    )
    assert [choice.message.content for choice in answer.choices] == ["Grüezi!"] * 2
    assert answer.choices[0].finish_reason == "stop"
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert bytes(b for token in logprobs.content[:-1] for b in token.bytes or ()) == (
        "Grüezi!".encode()
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_stream(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="parrot", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == "Grüezi!"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 9


def test_a_stream_that_is_closed_early(client: openai.OpenAI, server: Any, helpers: Any) -> None:
    extra = {"ignore_eos": True}
    with client.chat.completions.create(
        model="parrot", messages=MESSAGES, stream=True, extra_body=extra
    ) as stream:
        next(iter(stream))
    helpers.wait_until(lambda: not server.engine.live)


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="parrot", prompt=["a", "b"], max_tokens=4, logprobs=1, echo=True
    )
    assert [choice.text for choice in answer.choices] == ["aa", "bb"]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == ["a", "a", "<|end|>"]
    chunks = client.completions.create(model="parrot", prompt="hello", stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "hello"


def test_tools_and_their_stream_helper(client: openai.OpenAI) -> None:
    tools: Any = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>'
    messages: Any = [{"role": "user", "content": call}]
    answer = client.chat.completions.create(model="parrot", messages=messages, tools=tools)
    assert answer.choices[0].finish_reason == "tool_calls"
    calls: Any = answer.choices[0].message.tool_calls
    (found,) = calls
    assert found.type == "function"
    assert found.function.arguments == '{"a": 1}'
    # What the SDK gives back can be sent again.
    again = [*messages, answer.choices[0].message, {"role": "tool", "content": "2"}]
    again[-1]["tool_call_id"] = found.id
    client.chat.completions.create(model="parrot", messages=again, tools=tools)
    with client.chat.completions.stream(model="parrot", messages=messages, tools=tools) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    calls = final.choices[0].message.tool_calls
    (streamed,) = calls
    assert streamed.function.name == "add"


def test_errors_become_the_sdks_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="nope", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="parrot", messages=MESSAGES, temperature=9)
    assert wrong.value.param == "temperature"
    assert wrong.value.request_id
    with pytest.raises(openai.BadRequestError) as unknown:
        client.completions.create(model="parrot", prompt="x", extra_body={"foo": 1})
    assert unknown.value.param == "foo"


def test_an_error_in_a_stream(client: openai.OpenAI, server: Any, helpers: Any) -> None:
    extra = {"ignore_eos": True}
    with server.engine.held(steps=3):
        stream = client.completions.create(
            model="parrot", prompt="ab", stream=True, max_tokens=400, extra_body=extra
        )
        next(stream)
        live = max(server.engine.live.values(), key=lambda live: live.sequence.id)
        live.answer = [byte + 3 for byte in helpers.CURSE.encode()]
    with pytest.raises(openai.APIError, match="failed"):
        list(stream)


def test_many_at_once(server: Any) -> None:
    async def one(sdk: openai.AsyncOpenAI, place: int) -> str:
        messages: Any = [{"role": "user", "content": f"say {place}"}]
        if place % 2:
            answer = await sdk.chat.completions.create(model="parrot", messages=messages)
            return answer.choices[0].message.content or ""
        stream = await sdk.chat.completions.create(model="parrot", messages=messages, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def all_of_them() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0
        ) as sdk:
            return await asyncio.gather(*(one(sdk, place) for place in range(40)))

    assert asyncio.run(all_of_them()) == [f"say {place}" for place in range(40)]
