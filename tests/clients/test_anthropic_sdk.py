"""The anthropic SDK against a real server: messages, streams, tools, structured answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest

from tests.clients.weather import ANSWER, CITY, EXPECTED, QUESTION, THOUGHT, Sky, Weather

ASKED: Any = {
    "model": "scripted",
    "max_tokens": 200,
    "messages": [{"role": "user", "content": QUESTION}],
}
TOOLS: Any = [{"name": "get_weather", "description": "Look outside.", "input_schema": CITY}]


@pytest.fixture(scope="module")
def client(scripted_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=scripted_url, api_key="none", max_retries=0) as sdk:
        yield sdk


def test_a_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**ASKED, system="Be kind.")
    thought, text = message.content
    assert thought.type == "thinking" and thought.thinking == THOUGHT
    assert text.type == "text" and text.text == ANSWER
    assert message.stop_reason == "end_turn"
    counted = client.messages.count_tokens(
        model="scripted", system="Be kind.", messages=ASKED["messages"]
    )
    usage = message.usage
    assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)


def test_a_stream(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**ASKED) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert {"thinking", "text", "signature"} <= set(kinds)
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop"
    assert [block.type for block in final.content] == ["thinking", "text"]
    with client.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == ANSWER


@pytest.mark.parametrize("choice", ["auto", "any", "tool"])
def test_a_tool_and_its_result(client: anthropic.Anthropic, choice: str) -> None:
    named = {"name": "get_weather"} if choice == "tool" else {}
    tool_choice: Any = {"type": choice, **named}
    message = client.messages.create(**ASKED, tools=TOOLS, tool_choice=tool_choice)
    assert message.stop_reason == "tool_use"
    use = message.content[-1]
    assert use.type == "tool_use"
    assert (use.name, use.input) == ("get_weather", {"city": "Paris"})
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "21 degrees"}
    turns: Any = [
        *ASKED["messages"],
        {"role": "assistant", "content": message.content},
        {"role": "user", "content": [result]},
    ]
    after = client.messages.create(**{**ASKED, "messages": turns}, tools=TOOLS)
    assert after.stop_reason == "end_turn"
    assert after.content[-1].type == "text" and after.content[-1].text == ANSWER


def test_a_call_is_streamed(client: anthropic.Anthropic) -> None:
    with client.messages.stream(**ASKED, tools=TOOLS) as stream:
        parts = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert len(parts) > 1
    assert json.loads("".join(parts)) == {"city": "Paris"}
    use = final.content[-1]
    assert use.type == "tool_use" and use.input == {"city": "Paris"}


def test_the_sdk_runs_the_tools(client: anthropic.Anthropic) -> None:
    asked = []

    @anthropic.beta_tool
    def get_weather(city: str) -> str:
        """Look outside.

        Args:
            city: Where.
        """
        asked.append(city)
        return "21 degrees"

    runner = client.beta.messages.tool_runner(**ASKED, tools=[get_weather])
    final = runner.until_done()
    assert asked == ["Paris"]
    assert final.content[-1].type == "text" and final.content[-1].text == ANSWER


def test_a_structured_answer(client: anthropic.Anthropic) -> None:
    assert client.messages.parse(**ASKED, output_format=Weather).parsed_output == EXPECTED
    with client.messages.stream(**ASKED, output_format=Weather) as stream:
        assert stream.get_final_message().parsed_output == EXPECTED


def test_a_random_model_keeps_to_a_schema(server_url: str) -> None:
    with anthropic.Anthropic(base_url=server_url, api_key="none", max_retries=0) as client:
        answer = client.messages.parse(**{**ASKED, "model": "tiny"}, output_format=Sky)
    assert isinstance(answer.parsed_output, Sky)


def test_errors_are_the_sdks(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**ASKED, "model": "other"})
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        client.messages.create(**ASKED, extra_body={"temperature": 9})
