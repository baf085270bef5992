"""The memory of the process has a ceiling: prefixes go first, then rows wait, then one fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.guard import memory_guard
from mlx_parallm.engine.ranks.turn import Reading
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.errors import ModelLoadError, OutOfMemoryError
from mlx_parallm.models import system_memory
from mlx_parallm.models.device_memory import available_kv_bytes
from tests.conftest import EngineFactory, tiny_llama
from tests.engine.driver import Driver, copy_of, greedy

LIMIT = 8 << 20
MARGIN = LIMIT // 8


class Left:
    """What the guard finds: so many bytes left, less what `engine` holds."""

    def __init__(self) -> None:
        self.nbytes = LIMIT
        self.engine: Engine | None = None

    def __call__(self) -> int:
        return self.nbytes - (0 if self.engine is None else held(self.engine))


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Left:
    """The guards of all engines see what this says, before every step."""
    found = Left()
    monkeypatch.setattr(memory_guard, "_LOOK_S", 0.0)
    monkeypatch.setattr(
        memory_guard, "measure", lambda limit: Reading(limit - found(), limit, found())
    )
    return found


def held(engine: Engine) -> int:
    """Bytes of K and V that rows and prefixes hold."""
    prefixes = engine.runner.prefixes
    return engine.runner.cache.nbytes + (0 if prefixes is None else prefixes.nbytes)


def answers_alone(make_engine: EngineFactory, rows: list[Sequence]) -> list[list[int]]:
    driver = Driver(make_engine(tiny_llama, memory_limit=LIMIT, prefix_cache_memory=0))
    return [driver.run(one := copy_of(row)).tokens(one) for row in rows]


def test_prefixes_go_first_and_nobody_notices(make_engine: EngineFactory, left: Left) -> None:
    rows = [greedy([10 + i, *range(20, 200)], 8, ignore_eos=True) for i in range(24)]
    right = answers_alone(make_engine, rows)
    engine = make_engine(tiny_llama, memory_limit=LIMIT, prefix_cache_memory=8 << 20)
    left.engine, left.nbytes = engine, MARGIN + 500_000
    driver = Driver(engine)
    for row in rows:
        driver.run(row)
        assert engine.runner.prefixes is not None
        assert engine.runner.prefixes.nbytes < left.nbytes
    assert [driver.tokens(row) for row in rows] == right
    assert engine.stats().prefix_evicted_pages > 0
    assert engine.stats().preemptions == 0


def test_near_it_rows_wait_and_their_answers_do_not_change(
    make_engine: EngineFactory, left: Left
) -> None:
    rows = [greedy([10 + i, *range(20, 90)], 60, ignore_eos=True) for i in range(12)]
    right = answers_alone(make_engine, rows)
    engine = make_engine(tiny_llama, memory_limit=LIMIT, prefix_cache_memory=0)
    left.engine, left.nbytes = engine, MARGIN + 200_000
    most: list[int] = []
    driver = Driver(engine)
    driver.on_output = lambda output: most.append(len(engine.scheduler.running))
    driver.run(*rows)
    assert 1 < max(most) < 12
    assert [driver.tokens(row) for row in rows] == right


def test_when_others_take_the_memory_rows_wait_and_come_back(
    make_engine: EngineFactory, left: Left
) -> None:
    rows = [greedy([10 + i, 11, 12], 60, ignore_eos=True) for i in range(6)]
    right = answers_alone(make_engine, rows)
    engine = make_engine(tiny_llama, memory_limit=LIMIT, prefix_cache_memory=0)
    driver = Driver(engine)

    def take(nbytes: int) -> Callable[[], None]:
        return lambda: setattr(left, "nbytes", nbytes)

    # Between the margin and the point at which a row that is alone has to go.
    driver.at_step(10, take(MARGIN // 2))
    driver.at_step(50, take(LIMIT))
    driver.run(*rows)
    assert engine.stats().preemptions >= 5
    assert [driver.tokens(row) for row in rows] == right


def test_where_nothing_is_left_each_request_is_answered_with_an_error(
    make_engine: EngineFactory, left: Left
) -> None:
    (right,) = answers_alone(make_engine, [one := greedy([5, 6], 30, ignore_eos=True)])
    engine = make_engine(tiny_llama, memory_limit=LIMIT)
    left.nbytes = 0
    driver = Driver(engine).run(*(rows := [greedy([5 + i, 6], 30) for i in range(5)]))
    for row in rows:
        assert isinstance(driver.end(row).error, OutOfMemoryError)
    left.nbytes = LIMIT
    assert Driver(engine).run(two := copy_of(one)).tokens(two) == right


def test_weights_that_exceed_the_limit_are_refused_at_start() -> None:
    with pytest.raises(ModelLoadError, match="--memory-limit"):
        available_kv_bytes(10**9, limit=10**8)
    assert available_kv_bytes(10**8, limit=10**9) == 45 * 10**7


def test_limits_of_containers_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def group(path: str, most: str, used: int, cached: int) -> None:
        folder = tmp_path / "cgroup" / path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nfile 9\n")

    (tmp_path / "self").mkdir()
    (tmp_path / "self/cgroup").write_text("0::/outer/inner\n")
    (tmp_path / "meminfo").write_text("MemTotal: 99999999 kB\nMemAvailable: 1000 kB\n")
    group("outer/inner", "max", 1, 0)
    group("outer", "900000", 700_000, 50_000)
    monkeypatch.setattr(system_memory, "_PROC", tmp_path)
    monkeypatch.setattr(system_memory, "_CGROUPS", tmp_path / "cgroup")
    assert system_memory.physical_bytes() == 900_000
    assert system_memory.available_bytes() == 250_000
    group("outer", "max", 1, 0)
    assert system_memory.available_bytes() == 1_024_000
    for name in ("meminfo", "self/cgroup"):
        (tmp_path / name).unlink()
    assert system_memory.available_bytes() is None
    assert system_memory.resident_bytes() is None
    assert system_memory.physical_bytes() > 1 << 28


@pytest.mark.skipif(mx.default_device() != mx.Device(mx.cpu), reason="GPUs say it themselves")
def test_what_other_programs_leave_is_less_than_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 1 << 40
    monkeypatch.setattr(memory_guard, "available_bytes", lambda: 5 << 20)
    assert memory_guard.measure(limit).left == 5 << 20
    monkeypatch.setattr(memory_guard, "available_bytes", lambda: None)  # not known
    use = memory_guard.measure(limit)
    assert use.left == limit - use.used


def test_it_is_reported(make_engine: EngineFactory) -> None:
    engine = make_engine(tiny_llama, memory_limit=1 << 40)
    Driver(engine).run(greedy([5], 3))
    stats: Any = engine.stats()
    assert 0 < stats.memory_used < stats.memory_limit
    assert stats.memory_limit == system_memory.physical_bytes()
    assert 0 < stats.memory_left < stats.memory_limit
