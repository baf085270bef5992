"""The engine with an exact mock model: tokens, shared steps, bounds, aborts."""

from __future__ import annotations

import threading
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from mlx_parallm.engine.client import Client
from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.plan import Plan
from mlx_parallm.engine.sequence import FinishReason, Output, SamplingParams, Sequence
from mlx_parallm.errors import (
    OutOfMemoryError,
    QueueFullError,
)
from tests.conftest import EngineFactory, tiny_llama
from tests.engine import mock
from tests.engine.driver import Driver, copy_of, greedy, right

PROMPTS = [[5], [9, 8, 7], list(range(3, 60)), [11] * 17, [250, 3] * 20]


# Tokens


def test_a_first_token_is_told_before_the_next_step_is_launched(engine: Engine) -> None:
    """On a CPU, launching takes as long as the step."""
    happened: list[str] = []
    driver, launch = Driver(engine), engine.runner.launch

    def noted(begun: Any) -> Any:
        happened.append("launch")
        return launch(begun)

    engine.runner.launch = noted  # type: ignore[method-assign]
    driver.on_output = lambda output: happened.append("token")
    driver.run(greedy([5, 9, 100], 4))
    assert happened[:3] == ["launch", "token", "launch"]


def test_rows_that_a_newcomers_step_leaves_out_get_their_own_tokens(
    make_engine: EngineFactory,
) -> None:
    alone = Driver(make_engine(tiny_llama))
    engine = make_engine(tiny_llama, max_batch_size=6)
    rows = [Sequence([7 + i, 8, 9] * 5, SamplingParams(30, 1.0, seed=i)) for i in range(9)]
    new = [Sequence([90 + i, 8, 9], SamplingParams(3, 1.0, seed=i)) for i in range(3)]
    right = [alone.run(one := copy_of(row)).tokens(one) for row in (*rows, *new)]
    for row in rows:
        row.client = Client("of many")
    driver, schedule, apart = Driver(engine), engine.scheduler.schedule, []

    def noted() -> Plan:
        plan = schedule()
        waits = {s.id for s in engine.scheduler.decoding} - {s.id for s in plan.decode}
        apart.append(bool(plan.decode and waits))
        return plan

    engine.scheduler.schedule = noted  # type: ignore[method-assign]
    for place, one in enumerate(new):
        one.client = Client(f"of one {place}")
        driver.at_step(8 + 9 * place, partial(driver.submit, one))
    driver.run(*rows)
    assert [driver.tokens(row) for row in (*rows, *new)] == right
    assert sum(apart) == 3


def test_mixed_prompts_give_the_exact_tokens(engine: Engine) -> None:
    driver, rows = Driver(engine), [greedy(p, 30) for p in PROMPTS]
    driver.run(*rows)
    assert all(right(driver, row) for row in rows)
    assert driver.reasons(rows) == [FinishReason.LENGTH] * len(rows)


@pytest.mark.parametrize("chunk", [1, 3, 64])
def test_prompts_in_chunks(make_engine: EngineFactory, chunk: int) -> None:
    engine = make_engine(mock.loaded(mock.MockModel()), prefill_chunk=chunk)
    driver, runner, late = Driver(engine), greedy([7, 7], 80), greedy(list(range(3, 200)), 5)
    driver.at_step(5, lambda: driver.submit(late))
    driver.run(runner)
    assert right(driver, runner) and right(driver, late)


def test_many_more_sequences_than_rows(make_engine: EngineFactory) -> None:
    engine = make_engine(mock.loaded(mock.MockModel()), max_batch_size=4)
    driver = Driver(engine)
    rows = [greedy([i % 250 + 3, i // 250 + 3], i % 7 + 1) for i in range(100)]
    driver.run(*rows)
    assert all(right(driver, row) for row in rows)
    stats = engine.stats()
    assert (stats.accepted, stats.finished) == (100, 100)
    assert stats.generated_tokens == sum(row.params.max_tokens for row in rows)
    assert stats.prompt_tokens == 200


def test_end_tokens_and_ignore_eos(engine: Engine) -> None:
    prompt = [5, 9, 100, 3]
    all_tokens = mock.expected(prompt, 12)
    end = all_tokens[6]
    cut = all_tokens.index(end) + 1
    by_stop = greedy(prompt, 12, stop_token_ids=frozenset({end}))
    by_eos = greedy(prompt, 12, eos_token_ids=frozenset({end}))
    ignoring = greedy(prompt, 12, eos_token_ids=frozenset({end}), ignore_eos=True)
    both = greedy(prompt, 12, stop_token_ids=frozenset({end}), ignore_eos=True)
    driver = Driver(engine).run(by_stop, by_eos, ignoring, both)
    assert driver.tokens(by_stop) == driver.tokens(by_eos) == all_tokens[:cut]
    assert driver.tokens(both) == all_tokens[:cut]
    assert driver.tokens(ignoring) == all_tokens
    assert driver.end(by_stop).finish_reason is FinishReason.STOP
    assert driver.end(ignoring).finish_reason is FinishReason.LENGTH


def test_min_tokens_forbid_end_tokens(engine: Engine) -> None:
    prompt = [5, 9, 100, 3]
    end = mock.expected(prompt, 1)[0]
    row = greedy(prompt, 20, stop_token_ids=frozenset({end}), min_tokens=6)
    driver = Driver(engine).run(row)
    assert end not in driver.tokens(row)[:6]
    assert driver.tokens(row)[0] == (end + 1) % mock.VOCAB, "the second best"


def test_prompt_only(engine: Engine) -> None:
    rows = [greedy([5, 6, 7], 0, prompt_logprobs=2), greedy([5], 0, prompt_logprobs=0)]
    driver = Driver(engine).run(*rows)
    scores = driver.prompt_logprobs(rows[0])
    assert scores is not None and scores[0] is None
    assert [s.token_id for s in scores[1:] if s] == [6, 7]
    assert [len(s.top) for s in scores[1:] if s] == [2, 2]
    assert driver.prompt_logprobs(rows[1]) == [None]
    assert [driver.tokens(row) for row in rows] == [[], []]
    assert driver.reasons(rows) == [FinishReason.LENGTH] * 2


def test_a_group_shares_one_prefill(make_engine: EngineFactory) -> None:
    model = mock.MockModel()
    engine = make_engine(mock.loaded(model))
    model.forwards.clear()  # what was tried at load
    prompt = list(range(3, 63))
    params = [SamplingParams(max_tokens=6, temperature=0.0, seed=i) for i in range(4)]
    rows = [Sequence(prompt, p, group=1) for p in params]
    driver = Driver(engine).run(*rows)
    assert all(right(driver, row) for row in rows)
    assert [shape for shape in model.forwards if shape[1] > 1] == [(1, 59)]


def test_a_group_has_prompt_logprobs_each(engine: Engine) -> None:
    params = SamplingParams(max_tokens=2, temperature=0.0, prompt_logprobs=1)
    rows = [Sequence([5, 6, 7, 8], params, group=1) for _ in range(3)]
    driver = Driver(engine).run(*rows)
    scores = [driver.prompt_logprobs(row) for row in rows]
    assert all(s is not None and len(s) == 4 and s[1] is not None for s in scores)
    assert scores[0] == scores[1] == scores[2]


def test_prompt_logprobs_that_were_sent_do_not_change(make_engine: EngineFactory) -> None:
    """A preempted sequence computes its prompt again, after its scores were sent."""
    engine = make_engine(mock.loaded(mock.MockModel()), kv_cache_memory=8 * 160, prefill_chunk=8)
    rows = [greedy([i + 3] * 40, 40, prompt_logprobs=1) for i in range(3)]
    driver = Driver(engine)
    seen: dict[int, list[int]] = {}

    def check(output: Output) -> None:
        for row in rows:
            scores = driver.prompt_logprobs(row)
            if scores is not None:
                seen.setdefault(row.id, []).append(len(scores))

    driver.on_output = check
    driver.run(*rows)
    assert engine.stats().preemptions > 0
    assert {length for lengths in seen.values() for length in lengths} == {40}


# Nothing runs alone (law 6)


def test_all_features_share_their_steps(engine: Engine) -> None:
    count, length = 9, 40
    base = {"max_tokens": length, "ignore_eos": True}
    features: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "seed": 5},
        {"temperature": 1.0, "top_p": 0.5},
        {"temperature": 1.0, "top_k": 7, "min_p": 0.1},
        {"temperature": 0.0, "repetition_penalty": 1.3, "presence_penalty": 0.5},
        {"temperature": 0.0, "logprobs": 5},
        {"temperature": 1.0, "prompt_logprobs": 3, "logprobs": 0},
        {"temperature": 0.0, "logit_bias": {17: 5.0}, "frequency_penalty": -0.5},
        {"temperature": 0.7, "min_tokens": 9, "stop_token_ids": frozenset({400})},
    ]
    rows = [Sequence([i + 3, 4, 5], SamplingParams(**(base | f))) for i, f in enumerate(features)]
    Driver(engine).run(*rows)
    stats = engine.stats()
    assert stats.decode_rows >= count * length
    # One step to prefill, one for each token, and a few at the ends.
    assert stats.steps <= length + 6


def test_a_long_prompt_does_not_stall_running_rows(make_engine: EngineFactory) -> None:
    model = mock.MockModel()
    engine = make_engine(mock.loaded(model), prefill_chunk=16)
    driver, runner, long = Driver(engine), greedy([5], 60), greedy([9] * 400, 1)
    lengths: list[int] = []

    def note(output: Output) -> None:
        if output.sequence_id == runner.id:
            lengths.append(len(model.forwards))

    driver.on_output = note
    driver.at_step(4, lambda: driver.submit(long))
    driver.run(runner)
    assert right(driver, runner) and right(driver, long)
    assert max(after - before for before, after in pairwise(lengths)) <= 2
    assert max(width for _, width in model.forwards) == 16


def test_a_chunk_is_a_bound_on_what_is_computed(make_engine: EngineFactory) -> None:
    """Short prompts beside a long one must not be padded to its chunk: 16 tokens are 16."""
    model = mock.MockModel()
    engine = make_engine(mock.loaded(model), prefill_chunk=16, max_batch_size=32)
    driver, runner = Driver(engine), greedy([5], 60)
    crowd = [greedy([9] * 400, 1), *(greedy([i + 3, 4], 1) for i in range(20))]
    driver.at_step(4, lambda: driver.submit(*crowd))
    driver.run(runner)
    assert all(right(driver, row) for row in [runner, *crowd])
    prefills = [rows * width for rows, width in model.forwards if width > 1]
    assert max(prefills) <= 16


# Bounds


def test_queue_full(make_engine: EngineFactory) -> None:
    engine = make_engine(mock.loaded(mock.MockModel()), max_batch_size=2, max_queue=3)
    driver, blocked = Driver(engine), threading.Event()
    engine.call(blocked.wait)
    rows = [greedy([5], 100) for _ in range(5)]
    driver.submit(*rows)
    with pytest.raises(QueueFullError) as refused:
        driver.submit(greedy([5], 1))
    assert refused.value.status == 429
    assert engine.num_live == 5
    blocked.set()
    driver.wait()
    driver.run(late := greedy([6], 2))
    assert all(right(driver, row) for row in [*rows, late])


def test_a_sequence_larger_than_the_memory_is_refused_at_once(make_engine: EngineFactory) -> None:
    # The mock keeps one float32 key and one value a token: 8 bytes.
    engine = make_engine(mock.loaded(mock.MockModel()), kv_cache_memory=8 * 64)
    driver = Driver(engine)
    with pytest.raises(OutOfMemoryError):
        driver.submit(greedy([5] * 40, 25))
    driver.run(row := greedy([5] * 40, 24))
    assert right(driver, row)


def test_little_memory_preempts_and_gives_the_same_tokens(make_engine: EngineFactory) -> None:
    engine = make_engine(mock.loaded(mock.MockModel()), kv_cache_memory=8 * 160)
    rows = [greedy([i + 3] * 20, 60) for i in range(6)]
    driver = Driver(engine).run(*rows)
    assert all(right(driver, row) for row in rows)
    stats = engine.stats()
    assert stats.kv_tokens_total == 160
    assert stats.preemptions > 0


def test_the_memory_bound_holds_for_the_bytes_too(make_engine: EngineFactory) -> None:
    """One long row beside short ones: what is allocated stays near the budget."""
    budget = 8 * 1024
    engine = make_engine(mock.loaded(mock.MockModel()), kv_cache_memory=budget)
    driver, most = Driver(engine), [0]
    driver.on_output = lambda _: most.append(engine.stats().kv_bytes)
    rows = [greedy([4] * 400, 40), *(greedy([i + 3, 9], 60) for i in range(15))]
    driver.run(*rows)
    assert all(right(driver, row) for row in rows)
    assert max(most) <= 2 * budget


def test_a_long_row_gives_its_memory_back_while_others_run(make_engine: EngineFactory) -> None:
    engine = make_engine(mock.loaded(mock.MockModel()))
    driver, long, short = Driver(engine), greedy([4] * 400, 3), greedy([5, 6], 60)
    held: list[int] = []
    driver.on_output = lambda _: held.append(engine.stats().kv_bytes)
    driver.run(long, short)
    assert right(driver, long) and right(driver, short)
    assert held[-1] < max(held) / 4


def test_bounds_change_while_running(make_engine: EngineFactory) -> None:
    engine = make_engine(mock.loaded(mock.MockModel()), max_batch_size=8)
    driver = Driver(engine)
    driver.run(*(greedy([5], 5) for _ in range(8)))
    before = engine.stats()
    engine.configure(max_batch_size=2, prefill_chunk=4)
    driver.run(*(greedy([5], 5) for _ in range(8)))
    after = engine.stats()
    assert after.steps - before.steps >= 4 * 5
    assert engine.config.max_batch_size == 2


# Aborts


def test_abort_before_the_first_step(engine: Engine) -> None:
    driver, row, other = Driver(engine), greedy([5], 50), greedy([6], 5)
    blocked = threading.Event()
    engine.call(blocked.wait)
    driver.submit(row, other)
    engine.abort([row.id])
    blocked.set()
    driver.wait()
    assert driver.end(row).finish_reason is FinishReason.ABORT
    assert driver.tokens(row) == []
    assert right(driver, other)


@pytest.mark.parametrize("step", [1, 2, 5, 9, 10, 11])
def test_abort_during_a_run(engine: Engine, step: int) -> None:
    driver, row, other = Driver(engine), greedy([5, 6], 10), greedy([6], 20)
    driver.at_step(step, lambda: engine.abort([row.id]))
    driver.run(row, other)
    end = driver.end(row).finish_reason
    assert end is (FinishReason.LENGTH if step >= 10 else FinishReason.ABORT)
    assert driver.tokens(row) == mock.expected(row.prompt, 10)[: len(driver.tokens(row))]
    assert right(driver, other)


def test_abort_while_waiting_and_in_prefill(make_engine: EngineFactory) -> None:
    engine = make_engine(mock.loaded(mock.MockModel()), max_batch_size=2, prefill_chunk=2)
    driver, runner = Driver(engine), greedy([5], 30)
    prefilling, waiting = greedy([6] * 200, 5), greedy([7], 5)
    driver.at_step(2, lambda: driver.submit(prefilling, waiting))
    driver.at_step(6, lambda: engine.abort([prefilling.id]))
    driver.at_step(7, lambda: engine.abort([waiting.id]))
    driver.run(runner)
    assert driver.end(prefilling).finish_reason is FinishReason.ABORT
    assert right(driver, runner)


def test_abort_of_the_finished_and_the_unknown_is_ignored(engine: Engine) -> None:
    driver = Driver(engine).run(row := greedy([5], 3))
    engine.abort([row.id, 1 << 60])
    driver.run(other := greedy([6], 3))
    assert driver.end(row).finish_reason is FinishReason.LENGTH
    assert right(driver, other)
    assert engine.stats().aborted == 0
