"""Receipts: what a request was given, in the answer itself."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlx_parallm.engine.config import EngineConfig
from mlx_parallm.engine.engine import Engine

COMPLETIONS = "/v1/completions"


@pytest.fixture
def real(serve: Any, llama_factory: Any) -> Any:
    """A server with a tiny real model that guesses from n-grams."""
    config = EngineConfig(max_batch_size=4, speculative="ngram")
    return serve(Engine(llama_factory, config), served_model_name=("tiny",))


def test_a_receipt_says_what_was_found_and_done(real: Any) -> None:
    body = {"prompt": list(range(1, 90)), "max_tokens": 6, "ignore_eos": True, "receipt": True}
    first, second = (real.ok(COMPLETIONS, **body)["receipts"][0] for _ in range(2))
    assert first["prompt_tokens"] == 89 and first["generated_tokens"] == 6
    assert first["cached_tokens"] == 0 and second["cached_tokens"] >= 64
    assert first["prompt_chunks"] >= 1 and first["preemptions"] == 0
    assert first["steps"] >= 1 and first["mean_batch_rows"] >= 1
    assert first["constrained"] is False and first["adapter"] is None
    assert first["weight_versions"] == [0] and first["memories"] == []
    assert first["accepted_tokens"] <= first["guessed_tokens"]


def test_the_seed_of_a_receipt_gives_the_answer_again(real: Any) -> None:
    body = {"prompt": [5, 6, 7], "max_tokens": 12, "temperature": 1.0, "ignore_eos": True}
    drawn = real.ok(COMPLETIONS, **body, receipt=True, n=3, return_token_ids=True)
    for choice, receipt in zip(drawn["choices"], drawn["receipts"], strict=True):
        again = real.ok(COMPLETIONS, **body, seed=receipt["seed"], return_token_ids=True)
        assert again["choices"][0]["token_ids"] == choice["token_ids"]


def test_a_stream_ends_with_its_receipts(real: Any) -> None:
    messages = [{"role": "user", "content": "x"}]
    body = {"messages": messages, "max_tokens": 3, "receipt": True, "n": 2}
    events = real.events("/v1/chat/completions", **body)
    assert [receipt["index"] for receipt in events[-1]["receipts"]] == [0, 1]
    assert events[-1]["choices"] == []


def test_constraints_are_on_the_receipt(real: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    answer = real.ok(
        COMPLETIONS,
        prompt="x",
        max_tokens=40,
        receipt=True,
        response_format={"type": "json_schema", "json_schema": {"name": "s", "schema": schema}},
    )
    assert answer["receipts"][0]["constrained"] is True
    assert answer["choices"][0]["finish_reason"] == "length" or json.loads(
        answer["choices"][0]["text"]
    )


def test_nobody_gets_a_receipt_unasked(real: Any) -> None:
    assert "receipts" not in real.ok(COMPLETIONS, prompt="x", max_tokens=2)
