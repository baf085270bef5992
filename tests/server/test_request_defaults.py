"""Options that hold for requests which do not say it themselves, over HTTP."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.waiting import PATIENCE_S


@pytest.fixture
def sampled(serve: Any) -> Any:
    """sampled(path, body, **options): the SamplingParams that the engine was given."""

    def ask(path: str, body: dict[str, Any], **options: Any) -> Any:
        served = serve(**options)
        answer = httpx.post(f"{served.url}{path}", json=body, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text
        return served.engine.submitted[-1].params

    return ask


OPTIONS = {"temperature": 0.25, "top_k": 7, "min_p": 0.1, "seed": 5, "max_tokens": 9}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hello"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}]}),
        ("/v1/generate", {"prompt": "hello"}),
        ("/generate", {"prompt": "hello"}),
    ],
)
def test_they_hold_for_what_a_request_does_not_say(
    sampled: Any, path: str, body: dict[str, Any]
) -> None:
    silent = sampled(path, {**body, "temperature": None}, **OPTIONS)
    assert (silent.temperature, silent.top_k, silent.min_p, silent.seed) == (0.25, 7, 0.1, 5)
    assert (silent.max_tokens, silent.top_p) == (9, 1.0)
    own = {"temperature": 0.5, "top_k": 0, "seed": 6, "max_tokens": 3}
    said = sampled(path, {**body, **own}, **OPTIONS)
    assert (said.temperature, said.top_k, said.seed, said.max_tokens) == (0.5, 0, 6, 3)
    assert said.min_p == 0.1


@pytest.mark.parametrize(
    ("path", "body", "own"),
    [
        ("/completion", {"prompt": "hello"}, {"temperature": 0.5, "repeat_penalty": 1.0}),
        (
            "/api/generate",
            {"prompt": "hello", "raw": True, "stream": False},
            {"options": {"temperature": 0.5, "repeat_penalty": 1.0}},
        ),
    ],
)
def test_they_hold_for_the_clients_of_others(
    sampled: Any, path: str, body: dict[str, Any], own: dict[str, Any]
) -> None:
    options = {"temperature": 0.25, "repetition_penalty": 1.5, "max_tokens": 4}
    silent = sampled(path, body, **options)
    assert (silent.temperature, silent.repetition_penalty, silent.max_tokens) == (0.25, 1.5, 4)
    said = sampled(path, {**body, **own}, **options)
    assert (said.temperature, said.repetition_penalty) == (0.5, 1.0)


def test_a_default_of_max_tokens_is_cut_to_the_context(sampled: Any, helpers: Any) -> None:
    body = {"prompt": [5] * (helpers.CONTEXT - 3)}
    assert sampled("/v1/completions", body, max_tokens=400).max_tokens == 3


def test_template_variables(serve: Any) -> None:
    served = serve(chat_template_kwargs={"suffix": "server"})

    def prompt(**more: Any) -> str:
        body = {"messages": [{"role": "user", "content": "hi"}], **more}
        tokens = httpx.post(f"{served.url}/tokenize", json=body, timeout=PATIENCE_S).json()[
            "tokens"
        ]
        shown = httpx.post(
            f"{served.url}/detokenize", json={"tokens": tokens}, timeout=PATIENCE_S
        ).json()
        return str(shown["prompt"])

    assert prompt().endswith("server")
    assert prompt(chat_template_kwargs={"suffix": "client"}).endswith("client")
    assert prompt(chat_template_kwargs={"other": 1}).endswith("server")
    text = httpx.post(f"{served.url}/tokenize", json={"prompt": "hi"}, timeout=PATIENCE_S).json()
    assert text["count"] == 2
