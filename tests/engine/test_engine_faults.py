"""The engine when something goes wrong, and how it begins and ends."""

from __future__ import annotations

import threading
from typing import Any

import mlx.core as mx
import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import FinishReason, Output, SamplingParams, Sequence
from mlx_parallm.errors import (
    ModelLoadError,
    SequenceError,
    UnavailableError,
)
from tests.conftest import EngineFactory, assert_no_leaks
from tests.engine import mock
from tests.engine.driver import Driver, greedy, right
from tests.waiting import PATIENCE_S, wait_until

# Faults stay with their row (law 5)


def poisoned_engine(make_engine: EngineFactory, **config: Any) -> Engine:
    return make_engine(mock.loaded(mock.MockModel(poison=mock.POISON)), **config)


def failed(driver: Driver, sequence: Sequence) -> bool:
    end = driver.end(sequence)
    return end.finish_reason is FinishReason.ERROR and isinstance(end.error, SequenceError)


def clean(prompt: list[int], count: int) -> bool:
    return mock.POISON not in prompt + mock.expected(prompt, count)


@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_poisoned_prompt_fails_alone(make_engine: EngineFactory, place: int) -> None:
    engine = poisoned_engine(make_engine)
    prompts = [p for p in ([i, 5, 6] for i in range(3, 40)) if clean(p, 12)][:6]
    rows = [greedy(p, 12) for p in prompts]
    bad = greedy([9, mock.POISON, 4], 12)
    rows.insert(place, bad)
    driver = Driver(engine).run(*rows)
    assert failed(driver, bad)
    assert all(right(driver, row) for row in rows if row is not bad)
    assert engine.stats().failed == 1


def test_a_poisoned_token_in_the_middle_fails_alone(make_engine: EngineFactory) -> None:
    engine = poisoned_engine(make_engine)
    prompts = [[i, j] for i in range(3, 60) for j in range(3, 9)]
    wells = [p for p in prompts if clean(p, 30)][:6]
    bads = [p for p in prompts if mock.POISON in mock.expected(p, 25)[3:]][:2]
    well, bad = [greedy(p, 30) for p in wells], [greedy(p, 30) for p in bads]
    driver = Driver(engine).run(bad[0], *well, bad[1])
    assert all(right(driver, row) for row in well)
    for row in bad:
        assert failed(driver, row)
        until = mock.expected(row.prompt, 30).index(mock.POISON)
        assert driver.tokens(row) == mock.expected(row.prompt, until + 1)


def test_faults_among_arrivals_groups_and_preemptions(make_engine: EngineFactory) -> None:
    engine = poisoned_engine(make_engine, kv_cache_memory=8 * 320, prefill_chunk=8)
    prompts = [p for p in ([i] * 20 for i in range(3, 200)) if clean(p, 20)][:8]
    well = [greedy(p, 20) for p in prompts[:6]]
    well += [Sequence(prompts[6], greedy([1], 20).params, group=77) for _ in range(3)]
    bad = [greedy([5] * i + [mock.POISON], 9) for i in (0, 4, 25)]
    driver = Driver(engine)
    driver.at_step(3, lambda: driver.submit(bad[1], *well[3:6]))
    driver.at_step(6, lambda: driver.submit(*well[6:], bad[2]))
    driver.run(*well[:3], bad[0])
    assert all(right(driver, row) for row in well)
    assert all(failed(driver, row) for row in bad)


def test_counters_are_right_after_the_last_row_failed(make_engine: EngineFactory) -> None:
    engine = poisoned_engine(make_engine)
    prompt = next([i] for i in range(3, 200) if mock.POISON in mock.expected([i], 25)[3:])
    bad = greedy(prompt, 30)
    assert failed(Driver(engine).run(bad), bad)
    assert_no_leaks(engine)


def test_a_fault_that_passes_costs_nobody(make_engine: EngineFactory) -> None:
    """The model fails once: every row is computed again and none is failed."""
    failures: list[int] = []

    class FailsOnce(mock.MockModel):
        def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
            if len(self.forwards) > before + 5 and not failures:
                failures.append(len(self.forwards))
                raise RuntimeError("the device failed once")
            return super().__call__(inputs, cache)

    before = 1 << 30  # forwards that the engine makes to warm up
    model = FailsOnce()
    engine = make_engine(mock.loaded(model))
    before = len(model.forwards)
    driver, rows = Driver(engine), [greedy([i + 3], 20) for i in range(4)]
    driver.run(*rows)
    assert failures
    assert all(right(driver, row) for row in rows)


def test_a_step_that_fails_when_it_is_read(make_engine: EngineFactory) -> None:
    """Arrays are computed later than the model is called; their errors come later too."""
    engine = make_engine(mock.loaded(mock.MockModel()))
    collect, left = engine.runner.collect, [0, 0, 0, 0, 1, *[0] * 25, 1, 0]

    def sometimes(launched: Any) -> Any:
        if left and left.pop(0):
            raise RuntimeError("the device failed")
        return collect(launched)

    engine.runner.collect = sometimes  # type: ignore[method-assign]
    driver, rows = Driver(engine), [greedy([i + 3, 9], 40 + i) for i in range(4)]
    driver.run(*rows)
    assert all(right(driver, row) for row in rows)
    assert not left


def test_counters_are_right_after_a_step_that_could_not_be_read(
    make_engine: EngineFactory,
) -> None:
    engine = make_engine(mock.loaded(mock.MockModel()))

    def fail(launched: Any) -> Any:
        raise RuntimeError("the device failed")

    engine.runner.collect = fail  # type: ignore[method-assign]
    rows = [greedy([5, 6], 4), greedy([7], 1)]
    driver = Driver(engine).run(*rows)
    assert all(failed(driver, row) for row in rows)
    assert_no_leaks(engine)


def test_a_sink_that_raises_harms_nobody(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    def bad_sink(outputs: list[Output]) -> None:
        raise RuntimeError("the client's fault")

    driver, row, other = Driver(engine), greedy([5], 8), greedy([6], 8)
    engine.submit([row], bad_sink)
    driver.run(other)
    assert right(driver, other)
    assert_no_leaks(engine)
    assert row.finish_reason is FinishReason.LENGTH
    assert "sink" in caplog.text


def test_one_sink_call_a_step(engine: Engine) -> None:
    driver = Driver(engine)
    sizes: list[int] = []

    def sink(outputs: list[Output]) -> None:
        sizes.append(len(outputs))
        driver.sink(outputs)

    rows = [greedy([5], 6) for _ in range(5)]
    driver.expect(*rows)
    engine.submit(rows, sink)
    driver.wait()
    assert sizes == [5] * 6


# Life


def test_load_errors_are_told(caplog: pytest.LogCaptureFixture) -> None:
    def load() -> Any:
        raise OSError("no such folder")

    engine = Engine(load, EngineConfig())
    engine.start()
    with pytest.raises(ModelLoadError, match="no such folder"):
        engine.wait_ready(PATIENCE_S)
    assert engine.state == "stopped"
    assert "no such folder" in (engine.reason or "")
    with pytest.raises(UnavailableError):
        engine.submit([greedy([5])], print)
    with pytest.raises(UnavailableError):
        engine.call(lambda: 1)
    assert (engine.prefix_stats(), engine.speculative_stats()) == (None, None)
    assert engine.stats().steps == 0
    engine.stop()


def test_a_call_made_while_loading_is_answered_when_loading_fails() -> None:
    go, asked = threading.Event(), threading.Event()

    def load() -> Any:
        go.wait(PATIENCE_S)
        raise OSError("broken")

    engine = Engine(load, EngineConfig())
    engine.start()
    future = engine.call(asked.set)
    go.set()
    future.result(PATIENCE_S)
    assert asked.is_set()


def test_submit_while_loading_is_refused() -> None:
    go = threading.Event()

    def load() -> Any:
        go.wait(PATIENCE_S)
        return mock.loaded(mock.MockModel())

    engine = Engine(load, EngineConfig())
    engine.start()
    assert engine.state == "loading"
    with pytest.raises(UnavailableError, match="loading"):
        engine.submit([greedy([5])], print)
    with pytest.raises(TimeoutError):
        engine.wait_ready(0.01)
    go.set()
    engine.wait_ready(PATIENCE_S)
    assert engine.state == "ready"
    engine.stop()
    assert engine.state == "stopped"


def test_draining_finishes_what_runs(make_engine: EngineFactory) -> None:
    engine = make_engine(mock.loaded(mock.MockModel(delay_s=0.001)))
    driver, row = Driver(engine), greedy([5], 40)
    driver.at_step(2, engine.drain)
    driver.submit(row)
    wait_until(lambda: engine.state == "draining")
    with pytest.raises(UnavailableError):
        engine.submit([greedy([6])], print)
    driver.wait()
    assert right(driver, row)


def test_stop_answers_everybody_and_frees_everything(make_engine: EngineFactory) -> None:
    engine = make_engine(mock.loaded(mock.MockModel(delay_s=0.001)), max_batch_size=2)
    driver, rows = Driver(engine), [greedy([5, 6], 20_000) for _ in range(5)]
    driver.submit(*rows)
    wait_until(lambda: driver.steps > 3)
    engine.stop()
    driver.wait(PATIENCE_S)
    assert driver.reasons(rows) == [FinishReason.ERROR] * 5
    assert all(isinstance(driver.end(row).error, UnavailableError) for row in rows)
    assert engine.state == "stopped"
    with pytest.raises(UnavailableError):
        engine.submit([greedy([5])], print)
    with pytest.raises(UnavailableError):
        engine.call(lambda: 1)
    assert_no_leaks(engine)


def test_a_broken_loop_answers_everybody(
    make_engine: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(mock.loaded(mock.MockModel(delay_s=0.001)))
    driver, rows = Driver(engine), [greedy([5], 20_000), greedy([6], 20_000)]
    driver.submit(*rows)

    def break_it() -> None:
        raise RuntimeError("a fault of the loop itself")

    monkeypatch.setattr("mlx_parallm.engine.engine.follow_load", break_it)
    driver.wait(PATIENCE_S)
    assert driver.reasons(rows) == [FinishReason.ERROR] * 2
    assert engine.state == "stopped"
    assert engine.reason
    with pytest.raises(UnavailableError):
        engine.submit([greedy([5])], print)


def test_calls_run_between_steps(engine: Engine) -> None:
    assert engine.call(lambda: threading.current_thread().name).result(PATIENCE_S) == "mlx-engine"

    def fail() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        engine.call(fail).result(PATIENCE_S)
    driver = Driver(engine).run(row := greedy([5], 3))
    assert right(driver, row)


def test_submissions_from_many_threads(engine: Engine) -> None:
    drivers = [Driver(engine) for _ in range(8)]
    rows = [[greedy([i + 3, j + 3], 10) for j in range(6)] for i in range(8)]

    def work(index: int) -> None:
        for row in rows[index]:
            drivers[index].submit(row)
        drivers[index].wait()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert all(right(d, row) for d, own in zip(drivers, rows, strict=True) for row in own)


def test_seeds_are_drawn_where_none_is_given(engine: Engine) -> None:
    params = SamplingParams(max_tokens=12, temperature=50.0, ignore_eos=True)
    rows = [Sequence([5], params) for _ in range(4)]
    driver = Driver(engine).run(*rows)
    assert len({tuple(driver.tokens(row)) for row in rows}) == 4
    assert all(row.params.seed is not None for row in rows)
