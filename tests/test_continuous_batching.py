"""Batches from asyncio: concurrency, order, cancellation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_parallm.continuous_batching import AsyncContinuousBatchingEngine, BatchConfig
from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.utils import batch_generate, close, session_of
from tests.conftest import assert_no_leaks, tiny_llama
from tests.engine.brake import braked
from tests.waiting import PATIENCE_S, wait_until

pytestmark = pytest.mark.usefixtures("no_compile")

PROMPTS = ["a", "some longer text", "b" * 60, "what?"] * 3


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Any, Any]]:
    loaded = tiny_llama(seed=3)
    yield loaded.model, loaded.tokenizer
    close(loaded.model)


def test_a_batch_is_answered_in_order(pair: tuple[Any, Any]) -> None:
    engine = AsyncContinuousBatchingEngine(*pair, BatchConfig(max_batch_size=8))
    answers = asyncio.run(engine.generate_batch(PROMPTS, max_tokens=10))
    assert answers == batch_generate(*pair, PROMPTS, max_tokens=10)
    assert session_of(*pair).engine.config.max_batch_size == 8


def test_concurrent_requests_share_their_steps(pair: tuple[Any, Any]) -> None:
    engine = AsyncContinuousBatchingEngine(*pair, BatchConfig(max_batch_size=12, max_tokens=20))
    before, inner, all_there = engine.get_stats(), session_of(*pair).engine, threading.Event()

    async def run() -> list[str]:
        inner.call(lambda: all_there.wait(PATIENCE_S))
        asked = asyncio.gather(*(engine.generate(p, ignore_eos=True) for p in PROMPTS))
        while inner.num_live < len(PROMPTS):
            await asyncio.sleep(0.001)
        all_there.set()
        return await asked

    answers = asyncio.run(run())
    assert answers == batch_generate(*pair, PROMPTS, max_tokens=20, ignore_eos=True)
    wait_until(lambda: engine.get_stats().running == 0)
    after = engine.get_stats()
    assert after.generated_tokens - before.generated_tokens == 2 * 20 * len(PROMPTS)
    assert after.steps - before.steps < 2 * 20 * 3


def test_defaults_come_from_the_config(pair: tuple[Any, Any]) -> None:
    config = BatchConfig(max_tokens=4, temperature=1.5, top_p=0.9, timeout_ms=5)
    engine = AsyncContinuousBatchingEngine(*pair, config)
    one, same, other = (
        asyncio.run(engine.generate("a", seed=seed, ignore_eos=True)) for seed in (1, 1, 2)
    )
    assert (
        one
        == same
        == batch_generate(*pair, ["a"], max_tokens=4, temp=1.5, top_p=0.9, seed=1, ignore_eos=True)[
            0
        ]
    )
    assert one != other


def test_streams_that_are_left_free_their_rows(pair: tuple[Any, Any]) -> None:
    engine = AsyncContinuousBatchingEngine(*pair)

    async def peek() -> str:
        async for _, piece in engine.stream_batch(PROMPTS, max_tokens=400, ignore_eos=True):
            return piece.text
        raise AssertionError("nothing came")

    asyncio.run(peek())
    assert_no_leaks(session_of(*pair).engine)


def test_cancelled_requests_free_their_rows(
    pair: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    engine = AsyncContinuousBatchingEngine(*pair)

    async def run() -> None:
        with braked(session_of(*pair).engine):
            batch = engine.generate_batch(PROMPTS, max_tokens=400, ignore_eos=True)
            task = asyncio.create_task(batch)
            while engine.get_stats().running == 0:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(run())  # closes the loop while the engine still answers
    assert_no_leaks(session_of(*pair).engine)
    assert not caplog.records


def test_bad_prompts_are_refused(pair: tuple[Any, Any]) -> None:
    engine = AsyncContinuousBatchingEngine(*pair)
    with pytest.raises(InvalidRequestError):
        asyncio.run(engine.generate(""))
    with pytest.raises(InvalidRequestError):
        asyncio.run(engine.generate_batch(["fine", [1 << 30]]))
    assert_no_leaks(session_of(*pair).engine)
