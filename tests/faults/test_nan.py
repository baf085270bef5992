"""A row whose numbers are NaN fails with an error that says so, and nobody else notices."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import mlx.core as mx
import pytest

from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.sequence import FinishReason, SamplingParams, Sequence
from mlx_parallm.errors import InvalidRequestError, NotANumberError
from mlx_parallm.models.loader import LoadedModel
from tests.conftest import EngineFactory, tiny_llama
from tests.engine.driver import Driver, copy_of, greedy
from tests.engine.mock import VOCAB
from tests.faults.conftest import POISON, POISON_ID, ServeFactory, poisoned_llama

BAD = f"what is {POISON} here"
TURNS = [{"role": "user", "content": BAD}]
MESSAGES = {"messages": TURNS, "max_tokens": 6}
COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
ASKED: dict[str, dict[str, Any]] = {
    COMPLETIONS: {"prompt": BAD, "max_tokens": 6},
    CHAT: MESSAGES,
    "/v1/messages": {"model": "tiny", **MESSAGES},
    RESPONSES: {"input": BAD},
    "/api/generate": {"model": "tiny", "prompt": BAD},
    "/api/chat": {"model": "tiny", "messages": TURNS},
    "/completion": {"prompt": BAD, "n_predict": 6},
}


def text_of(served: Any, prompt: str) -> Any:
    body = {"prompt": prompt, "max_tokens": 12, "seed": 5, "ignore_eos": True}
    return served.ok(COMPLETIONS, **body)["choices"][0]["text"]


def test_each_api_says_it_in_its_own_envelope_and_others_go_on(serve: ServeFactory) -> None:
    served = serve()
    goods = [f"a good prompt, number {place}" for place in range(4)]
    alone = [text_of(served, good) for good in goods]
    with ThreadPoolExecutor(5) as pool:
        for path, body in ASKED.items():
            for stream in (False, True):
                beside = [pool.submit(text_of, served, good) for good in goods]
                answer = served.post(path, **body, stream=stream)
                assert [one.result() for one in beside] == alone
                # Nothing was sent before it failed, so that streams have its status, too.
                assert answer.status_code == 500, (path, answer.text)
                error = answer.json()["error"]
                assert "NaN" in (error if isinstance(error, str) else error["message"])
                if path in (COMPLETIONS, CHAT, RESPONSES):
                    assert error["code"] == "not_a_number"
    assert served.http.get("/health").status_code == 200


@pytest.mark.parametrize("path", [COMPLETIONS, CHAT])
def test_in_the_middle_of_a_stream_it_is_the_last_event(serve: ServeFactory, path: str) -> None:
    body: dict[str, Any] = {"prompt": "x", "messages": [{"role": "user", "content": "x"}]}
    del body["messages" if path == COMPLETIONS else "prompt"]
    says_it = {**body, "logit_bias": {str(POISON_ID): 100}, "temperature": 0}
    text = serve().post(path, **says_it, max_tokens=8, stream=True).text
    *_, token, error = [part for part in text.split("\n\n") if part]
    assert POISON in token
    assert "not_a_number" in error
    assert "[DONE]" not in text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": ["fine", BAD]}),
        (COMPLETIONS, {"prompt": BAD, "max_tokens": 0, "echo": True, "logprobs": 1}),
        (COMPLETIONS, {"prompt": BAD, "max_tokens": 0, "prompt_logprobs": 1, "n": 2}),
        (COMPLETIONS, {"prompt": BAD, "n": 3}),
        (COMPLETIONS, {"prompt": BAD, "max_tokens": 1, "logprobs": 2}),
        (COMPLETIONS, {"prompt": BAD, "structured_outputs": {"regex": "[a-c]+"}}),
        (CHAT, {**MESSAGES, "response_format": {"type": "json_object"}}),
    ],
)
def test_whatever_is_asked_for(serve: ServeFactory, path: str, body: dict[str, Any]) -> None:
    answer = serve().post(path, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "not_a_number")


def test_memories_are_not_made_of_it(serve: ServeFactory) -> None:
    served = serve()
    path = "/v1/models/tiny/memories"
    job = served.post(path, collection="c", text=f"{BAD} " * 20).json()
    while job["status"] in ("queued", "running"):
        job = served.http.get(f"/v1/memories/jobs/{job['id']}").json()
    assert (job["status"], job["error"]["code"]) == ("failed", "not_a_number")


def test_all_tokens_forbidden_is_another_error(serve: ServeFactory) -> None:
    body = {"prompt": "x", "allowed_token_ids": [0], "min_tokens": 3, "max_tokens": 5}
    answer = serve().post(COMPLETIONS, **body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "no_token_allowed")


# In the engine


def poisoned(make_engine: EngineFactory, **config: Any) -> Engine:
    return make_engine(poisoned_llama, **config)


def alone(engine: Engine, sequence: Sequence) -> list[int]:
    return Driver(engine).run(one := copy_of(sequence)).tokens(one)


def is_nan(driver: Driver, sequence: Sequence) -> bool:
    end = driver.end(sequence)
    return end.finish_reason is FinishReason.ERROR and isinstance(end.error, NotANumberError)


def test_whoever_comes_into_its_slot_sees_nothing_of_it(make_engine: EngineFactory) -> None:
    """Masked columns count 0 times, but 0 times NaN is NaN."""
    engine = poisoned(make_engine, max_batch_size=2, prefix_cache_memory=0)
    bad = greedy([5] * 40 + [POISON_ID] + [6] * 9, 4)
    goods = [greedy([7 + i, 8, 9], 30, ignore_eos=True) for i in range(6)]
    right = [alone(engine, good) for good in goods]
    driver = Driver(engine).run(goods[0], bad, *goods[1:])
    assert is_nan(driver, bad)
    assert [driver.tokens(good) for good in goods] == right


def test_a_client_that_leaves_before_anybody_saw_it(make_engine: EngineFactory) -> None:
    engine = poisoned(make_engine, max_batch_size=2, prefix_cache_memory=0, prefill_chunk=8)
    bad = greedy([5] * 20 + [POISON_ID] + [6] * 300, 4)
    goods = [greedy([7 + i, 8, 9], 30, ignore_eos=True) for i in range(4)]
    right = [alone(engine, good) for good in goods]
    driver = Driver(engine)
    driver.at_step(2, lambda: driver.submit(bad))
    driver.at_step(8, lambda: engine.abort([bad.id]))
    driver.at_step(9, lambda: driver.submit(*goods[1:]))
    driver.run(goods[0])
    assert driver.end(bad).finish_reason is FinishReason.ABORT
    assert [driver.tokens(good) for good in goods] == right


@pytest.mark.parametrize("tokens", [1, 2, 3])
def test_at_its_last_token_its_slot_is_taken_already(
    make_engine: EngineFactory, tokens: int
) -> None:
    engine = poisoned(make_engine, max_batch_size=2, prefix_cache_memory=0)
    prompt = [5] * 40 + ([POISON_ID] if tokens == 1 else [])
    bad = greedy(prompt, tokens, logit_bias={POISON_ID: 1000.0})
    goods = [greedy([7 + i, 8, 9], 30, ignore_eos=True) for i in range(6)]
    right = [alone(engine, good) for good in goods]
    driver = Driver(engine).run(goods[0], bad, *goods[1:])
    assert is_nan(driver, bad)
    assert driver.tokens(bad) == [POISON_ID] * min(1, tokens - 1)
    assert [driver.tokens(good) for good in goods] == right


def test_its_pages_are_nobodys_prefix(make_engine: EngineFactory) -> None:
    engine = poisoned(make_engine)
    before = engine.stats().prefix_pages
    prompt = [POISON_ID, *range(5, 140)]
    assert is_nan(Driver(engine).run(one := greedy(prompt)), one)
    assert is_nan(Driver(engine).run(two := greedy(prompt)), two)
    assert engine.stats().prefix_pages == before


@pytest.mark.parametrize("speculative", [None, "ngram"])
def test_guesses_change_nothing(make_engine: EngineFactory, speculative: str | None) -> None:
    """The tokens before it are the same, and so are those of a row that guesses it wrongly."""
    engine = poisoned(make_engine, speculative=speculative)
    plain = make_engine(tiny_llama)
    rng = [(i * 37) % 180 + 20 for i in range(40)]
    repeats = [*rng[:6], POISON_ID + 1] * 6
    for temperature in (0.0, 1.0):
        params = SamplingParams(40, temperature, seed=3, ignore_eos=True)
        rows = [Sequence(list(repeats), params), Sequence(rng, params), Sequence(rng[:9], params)]
        mine, others = Driver(engine).run(*rows), Driver(plain)
        for row in rows:
            expected = others.run(one := copy_of(row)).tokens(one)
            if POISON_ID in expected:
                expected = expected[: expected.index(POISON_ID) + 1]
                assert len(expected) == 40 or is_nan(mine, row)
            assert mine.tokens(row) == expected


def test_the_tokens_before_it_are_sent(make_engine: EngineFactory) -> None:
    engine = poisoned(make_engine)
    driver = Driver(engine).run(row := greedy([5, 6], 9, logit_bias={POISON_ID: 1000.0}))
    assert driver.tokens(row) == [POISON_ID]
    assert is_nan(driver, row)


def test_one_nan_logit_is_enough_and_infinity_is_not_one(make_engine: EngineFactory) -> None:
    def load(value: float) -> LoadedModel:
        loaded = tiny_llama()
        bias = loaded.model.lm_head["bias"] = mx.zeros((VOCAB,))
        bias[77] = value
        return loaded

    for value, wrong in ((math.nan, True), (-math.inf, False), (math.inf, False)):
        driver = Driver(make_engine(partial(load, value))).run(greedy_row := greedy([5, 6], 3))
        assert is_nan(driver, greedy_row) is wrong
        assert (driver.tokens(greedy_row) == [77] * 3) is (value == math.inf)


def test_nothing_allowed_without_a_grammar(make_engine: EngineFactory) -> None:
    engine = poisoned(make_engine)
    for temperature in (0.0, 1.0):
        params = SamplingParams(
            4, temperature, allowed_token_ids=(0,), min_tokens=2, eos_token_ids=frozenset({0})
        )
        driver = Driver(engine).run(row := Sequence([5, 6], params))
        error = driver.end(row).error
        assert isinstance(error, InvalidRequestError)
        assert error.code == "no_token_allowed"
