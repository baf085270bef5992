"""LangChain's OpenAI package: texts, structured answers and tools, through both APIs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import SecretStr

from tests.clients.weather import ANSWER, EXPECTED, QUESTION, Weather

PROMPT = " bapi bahi becu"
KEY = SecretStr("none")
# They warn about things that are theirs to change, and leave connections open.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("leftovers")]
apis = pytest.mark.parametrize("responses", [False, True], ids=["chat", "responses"])


@pytest.fixture
def leftovers() -> Iterator[None]:
    """Collect what is left open while its warnings are still let through."""
    yield
    gc.collect()


def chat_with(url: str, **options: Any) -> ChatOpenAI:
    return ChatOpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, **options)


@tool
def get_weather(city: Literal["Paris"]) -> str:
    """Look outside."""
    return f"21 degrees in {city}"


def test_texts_are_the_models(server_url: str, oracle: Any) -> None:
    options: Any = {"model": "tiny", "temperature": 0, "max_tokens": 6}
    chat = chat_with(server_url, **options)
    expected = oracle.generate(oracle.chat_prompt(PROMPT), 6)
    assert chat.invoke(PROMPT).content == expected
    assert "".join(str(chunk.content) for chunk in chat.stream(PROMPT)) == expected
    # Sends a list of prompts with "logprobs": null and "seed": null.
    completions = OpenAI(base_url=f"{server_url}/v1", api_key=KEY, **options)
    answers = completions.generate([PROMPT, " bexi"]).generations
    assert [a[0].text for a in answers] == [oracle.generate(p, 6) for p in (PROMPT, " bexi")]


@apis
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_a_structured_answer(scripted_url: str, responses: bool, method: Any) -> None:
    chat = chat_with(scripted_url, model="scripted", use_responses_api=responses)
    assert chat.with_structured_output(Weather, method=method).invoke(QUESTION) == EXPECTED


@apis
def test_a_tool_and_its_result(scripted_url: str, responses: bool) -> None:
    chat = chat_with(scripted_url, model="scripted", use_responses_api=responses)
    bound = chat.bind_tools([get_weather])
    message = bound.invoke(QUESTION)
    assert [call["args"] for call in message.tool_calls] == [{"city": "Paris"}]
    result = get_weather.invoke(message.tool_calls[0])
    assert isinstance(result, ToolMessage)
    after = bound.invoke([HumanMessage(QUESTION), message, result])
    assert after.text == ANSWER
    assert after.usage_metadata is not None and after.usage_metadata["output_tokens"] > 0


@apis
def test_a_call_is_streamed(scripted_url: str, responses: bool) -> None:
    chat = chat_with(scripted_url, model="scripted", use_responses_api=responses)
    whole: Any = None
    pieces = 0
    for chunk in chat.bind_tools([get_weather]).stream(QUESTION):
        assert isinstance(chunk, AIMessageChunk)
        whole = chunk if whole is None else whole + chunk
        pieces += len(chunk.tool_call_chunks)
    assert isinstance(whole, AIMessage)
    assert pieces > 2
    assert [(call["name"], call["args"]) for call in whole.tool_calls] == [
        ("get_weather", {"city": "Paris"})
    ]
