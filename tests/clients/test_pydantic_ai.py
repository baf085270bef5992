"""pydantic-ai: agents with tools and typed outputs, through both of OpenAI's APIs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import openai
import pytest
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.weather import ANSWER, EXPECTED, QUESTION, Weather

# It warns about things that are its own to change.
pytestmark = pytest.mark.filterwarnings("default")
apis = pytest.mark.parametrize("kind", [OpenAIChatModel, OpenAIResponsesModel])


def run(url: str, kind: Any, use: Callable[[Model], Awaitable[Any]], name: str = "scripted") -> Any:
    """`await use(model)` with a client that is closed afterwards."""

    async def main() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
            return await use(kind(name, provider=OpenAIProvider(openai_client=sdk)))

    return asyncio.run(main())


def get_weather(city: Literal["Paris"]) -> str:
    """Look outside."""
    return f"21 degrees in {city}"


def test_texts_are_the_models(server_url: str, oracle: Any) -> None:
    async def use(model: Model) -> str:
        answer = await Agent(model).run("bapi", model_settings={"temperature": 0, "max_tokens": 6})
        return str(answer.output)

    expected = oracle.generate(oracle.chat_prompt("bapi"), 6)
    assert run(server_url, OpenAIChatModel, use, "tiny") == expected


@apis
def test_an_agent_with_a_tool(scripted_url: str, kind: Any) -> None:
    asked = []

    def get_weather(city: Literal["Paris"]) -> str:
        """Look outside."""
        asked.append(city)
        return "21 degrees"

    async def use(model: Model) -> Any:
        return await Agent(model, tools=[get_weather], instructions="Be kind.").run(QUESTION)

    result = run(scripted_url, kind, use)
    assert (asked, result.output) == (["Paris"], ANSWER)
    assert result.usage.output_tokens > 0


@apis
def test_a_typed_output_as_a_tool(scripted_url: str, kind: Any) -> None:
    async def use(model: Model) -> Any:
        return (await Agent(model, output_type=Weather).run(QUESTION)).output

    assert run(scripted_url, kind, use) == EXPECTED


@apis
def test_a_typed_output_behind_a_tool(scripted_url: str, kind: Any) -> None:
    async def use(model: Model) -> Any:
        output = NativeOutput(Weather)
        return (await Agent(model, output_type=output, tools=[get_weather]).run(QUESTION)).output

    assert run(scripted_url, kind, use) == EXPECTED


@apis
def test_a_streamed_output(scripted_url: str, kind: Any) -> None:
    async def use(model: Model) -> Any:
        async with Agent(model, output_type=Weather).run_stream(QUESTION) as stream:
            return await stream.get_output()

    assert run(scripted_url, kind, use) == EXPECTED
