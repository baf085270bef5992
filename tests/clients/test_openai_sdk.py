"""The OpenAI SDK against a real engine; what it gets is compared with plain mlx-lm."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from benchlib.servers import our_command, spawn

PROMPT = " bapi bahi becu bana bide"


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server_url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def test_completion_is_mlx_lms(client: openai.OpenAI, oracle: Any) -> None:
    texts = [PROMPT, " bexi bibe"]
    expected = [oracle.generate(text, 12) for text in texts]
    for prompt in (texts, [oracle.encode(text) for text in texts]):
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=12, temperature=0
        )
        assert [choice.text for choice in answer.choices] == expected


def test_chat_is_mlx_lms_streamed_or_not(client: openai.OpenAI, oracle: Any) -> None:
    messages: Any = [{"role": "user", "content": PROMPT}]
    asked: Any = {"model": "tiny", "messages": messages, "max_tokens": 12, "temperature": 0}
    expected = oracle.generate(oracle.chat_prompt(PROMPT), 12)
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.content == expected
    assert whole.choices[0].finish_reason == "length"
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["length"]


def test_logprobs_are_the_models(client: openai.OpenAI, oracle: Any) -> None:
    answer = client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=5,
        temperature=0,
        logprobs=True,
        top_logprobs=4,
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    ids = oracle.chat_prompt(PROMPT)
    for token in logprobs.content:
        row = oracle.distribution(ids)[-1]
        best = sorted(row, reverse=True)[:4]
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(best, abs=1e-4)
        assert token.logprob == pytest.approx(best[0], abs=1e-4)
        ids.append(row.index(best[0]))


def test_n_and_seed(client: openai.OpenAI) -> None:
    def ask(n: int, seed: int) -> list[str]:
        answer = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=16, temperature=1, n=n, seed=seed
        )
        return [choice.text for choice in answer.choices]

    three = ask(3, 5)
    assert len(set(three)) == 3
    assert ask(3, 5) == three
    assert ask(1, 5) == three[:1]
    assert ask(1, 6) != three[:1]


def test_a_stream_of_several_choices(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": [PROMPT, " bexi"], "n": 2, "seed": 3}
    asked |= {"max_tokens": 10, "temperature": 1, "logprobs": 1}
    whole = client.completions.create(**asked)
    texts, tokens = [""] * 4, [0] * 4
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += len(choice.logprobs.tokens or []) if choice.logprobs else 0
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [10] * 4


def test_async_streams_beside_each_other(server_url: str, oracle: Any) -> None:
    prompts = [f" bapi bahi {place}" for place in range(12)]

    async def one(sdk: openai.AsyncOpenAI, prompt: str, tokens: int) -> str:
        stream = await sdk.completions.create(
            model="tiny", prompt=prompt, max_tokens=tokens, temperature=0, stream=True
        )
        return "".join([chunk.choices[0].text async for chunk in stream if chunk.choices])

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server_url}/v1", api_key="none") as sdk:
            jobs = [one(sdk, prompt, 5 + place) for place, prompt in enumerate(prompts)]
            return await asyncio.gather(*jobs)

    expected = [oracle.generate(prompt, 5 + place) for place, prompt in enumerate(prompts)]
    assert asyncio.run(together()) == expected


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [10**9]}, "prompt"),
        ({"logprobs": 99}, "logprobs"),
    ],
)
def test_a_wrong_value_is_a_bad_request(
    client: openai.OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "tiny", "prompt": "a", **fields})
    assert caught.value.type == "invalid_request_error"
    assert (caught.value.param or "").startswith(param)


def test_over_the_context_is_a_bad_request_with_its_code(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="2048") as caught:
        client.completions.create(model="tiny", prompt=[5] * 3000, max_tokens=5)
    assert caught.value.code == "context_length_exceeded"
    assert client.completions.create(model="tiny", prompt="a", max_tokens=1).choices


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_wrong_key_is_an_authentication_error(model_folder: Path) -> None:
    with spawn("with a key", our_command(model_folder, "--api-key", "right")) as server:
        model = str(model_folder)
        for key, works in (("wrong", False), ("right", True)):
            with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as sdk:
                if works:
                    assert sdk.completions.create(model=model, prompt="a", max_tokens=1).choices
                else:
                    with pytest.raises(openai.AuthenticationError):
                        sdk.completions.create(model=model, prompt="a", max_tokens=1)
