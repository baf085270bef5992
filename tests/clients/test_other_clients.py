"""Other clients of the OpenAI API, where they are installed; none of them is in an extra."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest


def needs(module: str, package: str) -> pytest.MarkDecorator:
    """Skip where an optional client is missing."""
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"optional client: pip install {package}")


# These warn on import about things that are theirs to change.
pytestmark = pytest.mark.filterwarnings("default")

PROMPT = " bapi bahi becu"


@needs("langchain_openai", "langchain-openai")
def test_langchain(server_url: str, oracle: Any) -> None:
    from langchain_openai import ChatOpenAI, OpenAI

    common: Any = {"base_url": f"{server_url}/v1", "api_key": "none", "model": "tiny"}
    chat = ChatOpenAI(**common, temperature=0, max_tokens=6)
    expected = oracle.generate(oracle.chat_prompt(PROMPT), 6)
    assert chat.invoke(PROMPT).content == expected
    assert "".join(str(chunk.content) for chunk in chat.stream(PROMPT)) == expected
    # Sends a list of prompts with "logprobs": null and "seed": null.
    completions = OpenAI(**common, temperature=0, max_tokens=6)
    answers = completions.generate([PROMPT, " bexi"]).generations
    assert [a[0].text for a in answers] == [oracle.generate(p, 6) for p in (PROMPT, " bexi")]


@needs("litellm", "litellm")
def test_litellm(server_url: str, oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm

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


@needs("pydantic_ai", "pydantic-ai-slim[openai]")
def test_pydantic_ai(server_url: str, oracle: Any) -> None:
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    provider = OpenAIProvider(base_url=f"{server_url}/v1", api_key="none")
    agent = Agent(OpenAIChatModel("tiny", provider=provider))
    answer = agent.run_sync(PROMPT, model_settings={"temperature": 0, "max_tokens": 6})
    assert answer.output == oracle.generate(oracle.chat_prompt(PROMPT), 6)
