"""Clients of the extra `clients`: they are large, or hold the OpenAI SDK back."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients.weather import ANSWER, CITY, EXPECTED, QUESTION, Sky, Weather


def client(module: str) -> Any:
    """An optional client's module; skips the test where it is not installed."""
    return pytest.importorskip(module, reason="optional client: pip install -e '.[clients]'")


# These warn about things that are theirs to change, and leave connections open.
pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.usefixtures("leftovers"),
]


@pytest.fixture
def leftovers() -> Iterator[None]:
    """Collect what a client left open while its warnings are still let through."""
    yield
    gc.collect()


PROMPT = " bapi bahi becu"
ASKED = [{"role": "user", "content": QUESTION}]


@pytest.fixture
def litellm(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    return client("litellm")


def test_litellm(server_url: str, oracle: Any, litellm: Any) -> None:
    common: Any = {"api_base": f"{server_url}/v1", "api_key": "none", "max_tokens": 6}
    common |= {"messages": [{"role": "user", "content": PROMPT}]}
    answer: Any = litellm.completion(model="openai/tiny", temperature=0, **common)
    assert answer.choices[0].message.content == oracle.generate(oracle.chat_prompt(PROMPT), 6)
    stream: Any = litellm.completion(model="openai/tiny", temperature=0, stream=True, **common)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == answer.choices[0].message.content
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(model="openai/other", **common)
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(model="openai/tiny", temperature=9, **common)


def test_litellms_tools_and_structured_answers(scripted_url: str, litellm: Any) -> None:
    common: Any = {"api_base": f"{scripted_url}/v1", "api_key": "none", "messages": ASKED}
    function = {"name": "get_weather", "parameters": CITY}
    tools = [{"type": "function", "function": function}]
    answer = litellm.completion(model="openai/scripted", tools=tools, **common)
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "Paris"}'
    answer = litellm.completion(model="openai/scripted", response_format=Weather, **common)
    assert json.loads(answer.choices[0].message.content) == json.loads(ANSWER)
    common = {"api_base": scripted_url, "api_key": "none", "messages": ASKED}
    answer = litellm.completion(model="anthropic/scripted", max_tokens=200, tools=tools, **common)
    assert answer.choices[0].message.tool_calls[0].function.name == "get_weather"


@pytest.fixture
def instructed(scripted_url: str) -> Iterator[Callable[[str], Any]]:
    """instructed(mode) is instructor's client; what it makes is of classes made from Weather."""
    instructor = client("instructor")
    openai = client("openai")
    with openai.OpenAI(base_url=f"{scripted_url}/v1", api_key="none", max_retries=0) as sdk:
        yield lambda mode: instructor.from_openai(sdk, mode=instructor.Mode[mode])


INSTRUCTED: Any = {"model": "scripted", "messages": ASKED, "response_model": Weather}
INSTRUCTED |= {"max_retries": 0, "max_tokens": 200}


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA"])
def test_instructor(instructed: Any, mode: str) -> None:
    answer = instructed(mode).chat.completions.create(**INSTRUCTED)
    assert answer.model_dump() == EXPECTED.model_dump()


@pytest.mark.parametrize("mode", ["TOOLS", "TOOLS_STRICT", "JSON", "JSON_SCHEMA"])
def test_instructor_tells_what_is_there_already(instructed: Any, mode: str) -> None:
    parts = list(instructed(mode).chat.completions.create_partial(**INSTRUCTED))
    assert len(parts) > 2
    assert parts[-1].model_dump() == EXPECTED.model_dump()


def test_instructor_with_a_random_model(server_url: str) -> None:
    instructor = client("instructor")
    openai = client("openai")
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as sdk:
        patched = instructor.from_openai(sdk, mode=instructor.Mode.JSON_SCHEMA)
        asked: Any = {"model": "tiny", "messages": ASKED, "response_model": Sky}
        assert isinstance(patched.chat.completions.create(**asked, max_retries=0), Sky)
