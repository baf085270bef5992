"""OpenAI's Agents SDK: tools, handoffs and structured answers, through both of its APIs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import agents
import openai
import pytest

from tests.clients.weather import ANSWER, EXPECTED, QUESTION, Weather

# It warns about things that are its own to change.
pytestmark = pytest.mark.filterwarnings("default")

ModelOf = Callable[[openai.AsyncOpenAI], agents.Model]
APIS: dict[str, ModelOf] = {
    "responses": lambda sdk: agents.OpenAIResponsesModel("scripted", sdk),
    "chat": lambda sdk: agents.OpenAIChatCompletionsModel("scripted", sdk),
}
api = pytest.mark.parametrize("model_of", APIS.values(), ids=APIS)


@pytest.fixture(autouse=True)
def no_tracing() -> None:
    """Traces would be sent to OpenAI."""
    agents.set_tracing_disabled(True)


def run(url: str, model_of: ModelOf, use: Callable[[agents.Model], Any]) -> Any:
    """`await use(model)` with a client that is closed afterwards."""

    async def main() -> Any:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
            return await use(model_of(sdk))

    return asyncio.run(main())


@agents.function_tool
def get_weather(city: Literal["Paris"]) -> str:
    """Look outside.

    Args:
        city: Where.
    """
    return f"21 degrees in {city}"


@api
def test_an_agent_with_a_tool(scripted_url: str, model_of: ModelOf) -> None:
    async def use(model: agents.Model) -> agents.RunResult:
        agent = agents.Agent("Guide", "Be kind.", model=model, tools=[get_weather])
        return await agents.Runner.run(agent, QUESTION)

    result = run(scripted_url, model_of, use)
    outputs = [item.output for item in result.new_items if item.type == "tool_call_output_item"]
    assert outputs == ["21 degrees in Paris"]
    assert result.final_output == ANSWER
    assert result.context_wrapper.usage.requests == 2
    assert result.context_wrapper.usage.output_tokens > 0


def _text_of(event: Any) -> str:
    return str(event.delta) if event.type == "response.output_text.delta" else ""


@api
def test_a_streamed_agent(scripted_url: str, model_of: ModelOf) -> None:
    async def use(model: agents.Model) -> tuple[str, list[str], Any]:
        agent = agents.Agent("Guide", model=model, tools=[get_weather])
        result = agents.Runner.run_streamed(agent, QUESTION)
        text = ""
        names: list[str] = []
        async for event in result.stream_events():
            if event.type == "run_item_stream_event":
                names.append(event.name)
            elif event.type == "raw_response_event":
                text += _text_of(event.data)
        return text, names, result.final_output

    text, names, final = run(scripted_url, model_of, use)
    assert text.endswith(ANSWER)
    assert {"tool_called", "tool_output", "message_output_created"} <= set(names)
    assert final == ANSWER


@api
def test_a_handoff(scripted_url: str, model_of: ModelOf) -> None:
    async def use(model: agents.Model) -> agents.RunResult:
        expert = agents.Agent("Weather expert", model=model, tools=[get_weather])
        desk = agents.Agent("Desk", "Hand over.", model=model, handoffs=[expert])
        return await agents.Runner.run(desk, QUESTION)

    result = run(scripted_url, model_of, use)
    assert result.last_agent.name == "Weather expert"
    assert result.final_output == ANSWER


@api
def test_a_structured_answer(scripted_url: str, model_of: ModelOf) -> None:
    async def use(model: agents.Model) -> agents.RunResult:
        agent = agents.Agent("Guide", model=model, tools=[get_weather], output_type=Weather)
        return await agents.Runner.run(agent, QUESTION)

    assert run(scripted_url, model_of, use).final_output == EXPECTED


def test_a_conversation_goes_on_from_what_is_stored(scripted_url: str) -> None:
    async def use(model: agents.Model) -> tuple[agents.RunResult, agents.RunResult]:
        agent = agents.Agent("Guide", model=model)
        first = await agents.Runner.run(agent, QUESTION)
        stored = first.last_response_id
        return first, await agents.Runner.run(agent, "Sure?", previous_response_id=stored)

    first, second = run(scripted_url, APIS["responses"], use)
    assert second.final_output == ANSWER
    tokens = [result.context_wrapper.usage.input_tokens for result in (first, second)]
    assert tokens[1] > tokens[0]
