"""The OpenAI SDK: structured answers and tools, through chat and through Responses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.clients.weather import ANSWER, CITY, EXPECTED, QUESTION, THOUGHT, Sky, Weather

ASKED: Any = [{"role": "user", "content": QUESTION}]
FUNCTION = {"name": "get_weather", "description": "Look outside.", "parameters": CITY}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]
STRICT_TOOL: Any = [{"type": "function", "function": {**FUNCTION, "strict": True}}]
RESPONSES_TOOLS: Any = [{"type": "function", **FUNCTION, "strict": True}]


def _client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(scripted_url: str) -> Iterator[openai.OpenAI]:
    with _client(scripted_url) as sdk:
        yield sdk


# A model that has no idea of JSON.


@pytest.mark.parametrize("stream", [False, True])
def test_a_random_model_keeps_to_a_schema(server_url: str, stream: bool) -> None:
    asked: Any = {"model": "tiny", "messages": ASKED, "response_format": Sky, "seed": 1}
    with _client(server_url) as client:
        if stream:
            with client.chat.completions.stream(**asked) as events:
                parsed = events.get_final_completion().choices[0].message.parsed
        else:
            parsed = client.chat.completions.parse(**asked).choices[0].message.parsed
    assert isinstance(parsed, Sky)


def test_a_random_models_response_keeps_to_a_schema(server_url: str) -> None:
    asked: Any = {"model": "tiny", "input": QUESTION, "text_format": Sky}
    with _client(server_url) as client:
        whole = client.responses.parse(**asked, temperature=1)
        with client.responses.stream(**asked) as events:
            streamed = events.get_final_response()
    for response in (whole, streamed):
        assert isinstance(response.output_parsed, Sky)


# Chat


def test_chat_parses_and_keeps_the_thinking_apart(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model="scripted", messages=ASKED, response_format=Weather
    )
    message = answer.choices[0].message
    assert message.parsed == EXPECTED
    # Where the grammar forces other tokens than the script's, any white space may follow.
    assert json.loads(message.content or "") == json.loads(ANSWER)
    assert getattr(message, "reasoning_content") == THOUGHT  # noqa: B009 - no field of the SDK's


def test_a_chat_stream_tells_what_is_parsed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "scripted", "messages": ASKED, "response_format": Weather}
    with client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        completion = stream.get_final_completion()
    assert completion.choices[0].message.parsed == EXPECTED
    assert {"content.delta", "content.done"} <= kinds


@pytest.mark.parametrize("tools", [TOOLS, STRICT_TOOL], ids=["free", "strict"])
@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function"}])
def test_a_tool_and_its_result(client: openai.OpenAI, tools: Any, choice: Any) -> None:
    if isinstance(choice, dict):
        choice = choice | {"function": {"name": "get_weather"}}
    asked: Any = {"model": "scripted", "tools": tools}
    answer = client.chat.completions.create(**asked, messages=ASKED, tool_choice=choice)
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    assert message.tool_calls is not None
    call: Any = message.tool_calls[0]
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    result = {"role": "tool", "tool_call_id": call.id, "content": "21 degrees"}
    messages: Any = [*ASKED, message.model_dump(exclude_none=True), result]
    after = client.chat.completions.create(**asked, messages=messages)
    assert after.choices[0].message.content == ANSWER


def test_a_streamed_call_is_parsed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "scripted", "messages": ASKED, "tools": STRICT_TOOL}
    parts, done = [], []
    with client.chat.completions.stream(**asked) as stream:
        for event in stream:
            if event.type == "tool_calls.function.arguments.delta":
                parts.append(event.arguments_delta)
            if event.type == "tool_calls.function.arguments.done":
                done.append((event.name, json.loads(event.arguments)))
    assert done == [("get_weather", {"city": "Paris"})]
    assert len(parts) > 1
    assert json.loads("".join(parts)) == {"city": "Paris"}


# Responses


def test_a_response_is_parsed(client: openai.OpenAI) -> None:
    response = client.responses.parse(model="scripted", input=QUESTION, text_format=Weather)
    assert response.output_parsed == EXPECTED
    thought, message = response.output
    assert thought.type == "reasoning" and thought.content is not None
    assert thought.content[0].text == THOUGHT
    assert message.type == "message"


def test_a_response_stream_is_parsed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "scripted", "input": QUESTION, "text_format": Weather}
    with client.responses.stream(**asked) as stream:
        texts = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert json.loads("".join(texts)) == json.loads(ANSWER)
    assert final.output_parsed == EXPECTED


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function"}])
def test_a_responses_tool_and_its_result(client: openai.OpenAI, choice: Any) -> None:
    if isinstance(choice, dict):
        choice = choice | {"name": "get_weather"}
    asked: Any = {"model": "scripted", "tools": RESPONSES_TOOLS}
    response = client.responses.create(**asked, input=QUESTION, tool_choice=choice)
    call = next(item for item in response.output if item.type == "function_call")
    assert call.name == "get_weather"
    assert json.loads(call.arguments) == {"city": "Paris"}
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "21"}
    stored = client.responses.create(**asked, input=[result], previous_response_id=response.id)
    question: Any = {"role": "user", "content": QUESTION}
    items: Any = [question, *(item.model_dump() for item in response.output), result]
    sent = client.responses.create(**asked, input=items, store=False)
    assert stored.output_text == sent.output_text == ANSWER


def test_a_responses_call_is_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "scripted", "input": QUESTION, "tools": RESPONSES_TOOLS}
    with client.responses.stream(**asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds.count("response.function_call_arguments.delta") > 1
    calls = [item for item in final.output if item.type == "function_call"]
    assert [json.loads(call.arguments) for call in calls] == [{"city": "Paris"}]
