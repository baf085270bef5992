"""Other clients of the OpenAI API, where they are installed; none of them is in an extra."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest


def client(module: str, package: str) -> Any:
    """An optional client's module; skips the test where it is not installed."""
    return pytest.importorskip(module, reason=f"optional client: pip install {package}")


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


def test_langchain(server_url: str, oracle: Any) -> None:
    langchain = client("langchain_openai", "langchain-openai")
    common: Any = {"base_url": f"{server_url}/v1", "api_key": "none", "model": "tiny"}
    chat = langchain.ChatOpenAI(**common, temperature=0, max_tokens=6)
    expected = oracle.generate(oracle.chat_prompt(PROMPT), 6)
    assert chat.invoke(PROMPT).content == expected
    assert "".join(str(chunk.content) for chunk in chat.stream(PROMPT)) == expected
    # Sends a list of prompts with "logprobs": null and "seed": null.
    completions = langchain.OpenAI(**common, temperature=0, max_tokens=6)
    answers = completions.generate([PROMPT, " bexi"]).generations
    assert [a[0].text for a in answers] == [oracle.generate(p, 6) for p in (PROMPT, " bexi")]


def test_litellm(server_url: str, oracle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = client("litellm", "litellm")
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


def test_pydantic_ai(server_url: str, oracle: Any) -> None:
    package = "pydantic-ai-slim[openai]"
    models = client("pydantic_ai.models.openai", package)
    providers = client("pydantic_ai.providers.openai", package)
    provider = providers.OpenAIProvider(base_url=f"{server_url}/v1", api_key="none")
    model = models.OpenAIChatModel("tiny", provider=provider)
    agent = client("pydantic_ai", package).Agent(model)
    answer = agent.run_sync(PROMPT, model_settings={"temperature": 0, "max_tokens": 6})
    assert answer.output == oracle.generate(oracle.chat_prompt(PROMPT), 6)
