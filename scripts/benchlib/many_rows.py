"""The scenario for large models: few to many rows behind short and long prompts."""

from __future__ import annotations

import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx

from benchlib.scenarios import Bench, Rows, ms, scenario
from benchlib.sides import our_engine
from benchlib.stock import BATCH_GENERATOR, Stock, StockError, StockSide
from benchlib.table import ratio
from benchlib.work import Side, Timing

Shape = tuple[int, int]
"""Rows, and tokens of each prompt."""
Start = Callable[[Bench, int], contextlib.AbstractContextManager[Side]]
"""(the bench, most rows at once) -> a side that runs as long as the block."""


@scenario("rows")
def rows(bench: Bench) -> Rows:
    """1 to 128 rows behind short and long prompts, against BatchGenerator, with peak memory."""
    shapes = _shapes(bench)
    found: dict[tuple[Shape, str], list[Timing | StockError]] = {}
    for number in range(bench.rounds):
        # One side at a time: two models with their caches may be too much for one device.
        for start in (_ours, _stock) if number % 2 == 0 else (_stock, _ours):
            for shape, name, timing in _measure(bench, start, shapes):
                found.setdefault((shape, name), []).append(timing)
            gc.collect()
            mx.clear_cache()
    ours = {shape: _speed(timings) for (shape, name), timings in found.items() if name == _OURS}
    keys = sorted(found, key=lambda key: (shapes.index(key[0]), key[1] != _OURS))
    return [_row(shape, name, found[shape, name], ours[shape]) for shape, name in keys]


_OURS = "mlx_parallm"


def _shapes(bench: Bench) -> list[Shape]:
    counts = (1, 3) if bench.quick else (1, 8, 32, 128)
    return [(count, prompt) for prompt in _prompts(bench) for count in counts]


def _prompts(bench: Bench) -> list[int]:
    longest = bench.context // 2
    return [min(longest, size) for size in (bench.size(128, 8), bench.size(2048, 64))]


def _measure(
    bench: Bench, start: Start, shapes: list[Shape]
) -> list[tuple[Shape, str, Timing | StockError]]:
    """One side under all shapes."""
    with start(bench, max(count for count, _ in shapes)) as side:
        return [(shape, side.name, _run(bench, side, shape)) for shape in shapes]


def _ours(bench: Bench, most: int) -> contextlib.AbstractContextManager[Side]:
    return our_engine(bench.folder, max_batch_size=most)


@contextlib.contextmanager
def _stock(bench: Bench, _: int) -> Iterator[Side]:
    stock = Stock(bench.folder)
    try:
        yield StockSide(stock, BATCH_GENERATOR)
    finally:
        stock.close()


def _run(bench: Bench, side: Side, shape: Shape) -> Timing | StockError:
    """Everything at once, after a short run that compiles what has to be compiled.

    A side that has not enough memory for it says so in its row.
    """
    count, prompt = shape
    try:
        side.run(bench.work(count, 4, prompt=prompt))
        return side.run(bench.work(count, bench.size(128, 8), prompt=prompt))
    except StockError as error:
        return error


def _row(shape: Shape, name: str, timings: list[Timing | StockError], ours: float | None) -> Any:
    good = [timing for timing in timings if isinstance(timing, Timing)]
    steps = [step for timing in good for step in timing.steps()]
    speed = _speed(timings)
    row: dict[str, Any] = {"rows": shape[0], "prompt": shape[1], "side": name}
    row["tokens/s"] = round(speed, 1) if speed else None
    row["ours / it"] = ratio(ours, speed)
    row["step ms"] = ms(statistics.median(steps)) if steps else None
    first = [times[0] for timing in good for times in timing.times]
    row["first token ms"] = ms(statistics.median(first)) if first else None
    row["peak MB"] = round(max(t.peak_bytes for t in good) / 1e6, 1) if good else None
    failures = [str(timing) for timing in timings if isinstance(timing, StockError)]
    return row | ({"failed": failures[0]} if failures else {})


def _speed(timings: list[Timing | StockError]) -> float | None:
    speeds = [timing.tokens_per_second for timing in timings if isinstance(timing, Timing)]
    return statistics.median(speeds) if speeds else None
