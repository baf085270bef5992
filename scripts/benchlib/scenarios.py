"""The scenarios of bench_engine.py. Add one: write a function, put @scenario on it.

Speeds of a shared machine drift, so sides take turns in rounds and medians are compared.
A target is a ratio or a bound that the project wants to reach; a row says whether it does.
"""

from __future__ import annotations

import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import asyncio
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import BatchKVCache

from benchlib.load_client import Target, closed_loop
from benchlib.servers import our_command, spawn
from benchlib.sides import (
    LmBatchGenerator,
    OurEngine,
    PlainLoop,
    Timing,
    Work,
    our_engine,
    to_row,
)
from benchlib.table import percentile, ratio
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler, SchedulerConfig
from mlx_parallm.models.base import BatchedCache, BatchedKVCache
from mlx_parallm.models.loader import LoadedModel, load_model
from mlx_parallm.models.memory import kv_bytes_per_token

Rows = list[dict[str, Any]]
MIXED: list[Mapping[str, float]] = [
    {"temperature": 0},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_k": 40},
    {"temperature": 0.9, "min_p": 0.05},
    {"temperature": 0.8, "top_p": 0.95},
    {"temperature": 0.7, "repetition_penalty": 1.1},
]
TOP_P: list[Mapping[str, float]] = [{"temperature": 0.8, "top_p": 0.95}]


@dataclass
class Bench:
    """What a scenario works with.

    Attributes:
        folder: the model.
        rounds: how often sides take turns.
        quick: small sizes, to see that it runs.
    """

    folder: Path
    rounds: int = 3
    quick: bool = False
    seed: int = 0

    @cached_property
    def loaded(self) -> LoadedModel:
        """The model for everything that runs on the caller's thread."""
        return load_model(str(self.folder))

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V of one token in all layers."""
        return kv_bytes_per_token(_warm_cache(self.loaded.model))

    def size(self, full: int, quick: int) -> int:
        """A size that depends on `quick`."""
        return quick if self.quick else full

    def prompt(self, tokens: int) -> list[int]:
        """Random token ids, different at every call."""
        self.seed += 1
        rng = random.Random(self.seed)
        return [rng.randrange(self.loaded.vocab_size) for _ in range(tokens)]

    def work(
        self, rows: int, tokens: int, mix: Sequence[Mapping[str, float]] = ({},), prompt: int = 64
    ) -> list[Work]:
        """`rows` pieces of work, their sampling settings taken in turn from the mix."""
        return [Work(self.prompt(prompt), tokens, mix[i % len(mix)]) for i in range(rows)]


class BenchError(RuntimeError):
    """A measurement that did not measure what it should."""


Scenario = Callable[[Bench], Rows]
SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str) -> Callable[[Scenario], Scenario]:
    """Put a function into the registry under a name."""

    def register(function: Scenario) -> Scenario:
        SCENARIOS[name] = function
        return function

    return register


def judge(value: float | None, target: float, *, at_least: bool) -> dict[str, Any]:
    """Cells for a value that has a target."""
    sign = ">=" if at_least else "<="
    met = value is not None and (value >= target if at_least else value <= target)
    return {"target": f"{sign} {target:g}", "met": "yes" if met else "no"}


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 2)


# --- throughput ---------------------------------------------------------------------------


@scenario("greedy")
def greedy(bench: Bench) -> Rows:
    """All rows greedy, against BatchGenerator and a plain loop."""
    others = (LmBatchGenerator(bench.loaded), PlainLoop(bench.loaded))
    return list(_throughput(bench, others, [{}], {}))


@scenario("mixed")
def mixed(bench: Bench) -> Rows:
    """Rows with different sampling settings, against BatchGenerator."""
    targets = {1: 1.2, 8: 1.5, 32: 1.8}
    return list(_throughput(bench, [LmBatchGenerator(bench.loaded)], MIXED, targets))


@scenario("top_p")
def top_p(bench: Bench) -> Rows:
    """All rows with top_p, against BatchGenerator."""
    return list(_throughput(bench, [LmBatchGenerator(bench.loaded)], TOP_P, {32: 3.0}))


def _throughput(
    bench: Bench,
    others: Sequence[LmBatchGenerator | PlainLoop],
    mix: Sequence[Mapping[str, float]],
    targets: Mapping[int, float],
) -> Iterator[dict[str, Any]]:
    tokens = bench.size(64, 24)
    with our_engine(bench.folder) as ours:
        for rows in (1, 4) if bench.quick else (1, 8, 32):
            found: dict[str, list[Timing]] = {side.name: [] for side in (ours, *others)}
            for number in range(-1, bench.rounds):
                for side in (ours, *others) if number % 2 else (*others, ours):
                    timing = side.run(bench.work(rows, tokens, mix))
                    if number >= 0:  # the first round warms up
                        found[side.name].append(timing)
            speeds = {name: _speed(timings) for name, timings in found.items()}
            for name, timings in found.items():
                row: dict[str, Any] = {
                    "side": name,
                    "rows": rows,
                    "tokens/s": round(speeds[name], 1),
                }
                row["step ms"] = _ms(_median_step(timings))
                row["ours / it"] = ratio(speeds[ours.name], speeds[name])
                if name == LmBatchGenerator.name and rows in targets:
                    row |= judge(row["ours / it"], targets[rows], at_least=True)
                yield row


def _speed(timings: list[Timing]) -> float:
    return statistics.median(timing.tokens_per_second for timing in timings)


def _median_step(timings: list[Timing]) -> float:
    steps = [step for timing in timings for step in timing.steps()]
    if not steps:
        raise BenchError("the rows never all decoded together; raise the tokens to generate")
    return statistics.median(steps)


@scenario("http")
def http(bench: Bench) -> Rows:
    """The server with 32 streaming clients against the engine without HTTP."""
    clients, tokens = bench.size(32, 4), bench.size(64, 24)
    by_http, by_engine = [], []
    with (
        our_engine(bench.folder) as ours,
        spawn("mlx_parallm", our_command(bench.folder)) as server,
    ):
        target = Target(server.url, "/v1/completions")
        for _ in range(bench.rounds + 1):
            requests = [target.request(_streamed(w)) for w in bench.work(2 * clients, tokens)]
            run = asyncio.run(closed_loop(target, requests, clients, 600))
            if errors := [reply.error for reply in run.replies if reply.error]:
                raise BenchError(errors[0])
            by_http.append(sum(reply.output_tokens for reply in run.replies) / run.seconds)
            timing = ours.run(bench.work(2 * clients, tokens), clients=clients)
            by_engine.append(timing.tokens_per_second)
    over, without = statistics.median(by_http[1:]), statistics.median(by_engine[1:])
    row: dict[str, Any] = {"HTTP tokens/s": round(over, 1), "engine tokens/s": round(without, 1)}
    row["HTTP / engine"] = ratio(over, without)
    return [row | judge(row["HTTP / engine"], 0.92, at_least=True)]


def _streamed(work: Work) -> dict[str, Any]:
    return {
        "prompt": work.prompt,
        "max_tokens": work.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


# --- one step against its floor -----------------------------------------------------------


@scenario("floor")
def floor(bench: Bench) -> Rows:
    """A decode step at 32 rows against the matrix products alone."""
    steps, floors = [], []
    products = _products(bench.loaded.model, 32)
    with our_engine(bench.folder) as ours:
        for _ in range(bench.rounds + 1):
            floors += _time_products(products, bench.size(20, 3))
            steps.append(ours.run(bench.work(32, bench.size(64, 24))))
    step, least = _median_step(steps[1:]), statistics.median(floors)
    found = ratio(step, least)
    row = {"step ms": _ms(step), "floor ms": _ms(least), "step / floor": found}
    return [row | judge(found, 2.2, at_least=False)]


Product = tuple[mx.array, mx.array]


def _products(model: Any, rows: int) -> list[list[Product]]:
    """Inputs and weights of every product of a step, the weights in two layouts.

    Which layout is faster depends on the BLAS, and the floor is the faster one.
    """
    weights = [m.weight for _, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not hasattr(model, "lm_head"):  # tied: the embedding is the last product's weight
        weights += [m.weight for _, m in model.named_modules() if isinstance(m, nn.Embedding)]
    inputs = {w.shape[1]: mx.random.normal((rows, w.shape[1])) for w in weights}
    rows_first = [(inputs[w.shape[1]], w.T) for w in weights]
    columns_first = [(inputs[w.shape[1]], mx.contiguous(w.T)) for w in weights]
    mx.eval([pair for layout in (rows_first, columns_first) for pair in layout])
    return [rows_first, columns_first]


def _time_products(layouts: list[list[Product]], repeats: int) -> list[float]:
    """Times of the faster layout, in seconds."""
    found = []
    for products in layouts:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            mx.eval([x @ w for x, w in products])
            times.append(time.perf_counter() - start)
        found.append(times)
    return min(found, key=statistics.median)


# --- joining, leaving, memory -------------------------------------------------------------


@scenario("join")
def join(bench: Bench) -> Rows:
    """One row joins a batch of 31 and one leaves, all at context 1,000."""
    context, repeats = bench.size(1000, 100), bench.size(7, 2)
    sides = {"mlx_parallm": _join_and_leave_ours, "mlx-lm BatchKVCache": _join_and_leave_mlx_lm}
    found: dict[str, list[Moves]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            found[name].append(side(bench.loaded.model, context))
    rows = []
    for name, moves in found.items():
        joining, leaving, extra = (statistics.median(move[i] for move in moves) for i in range(3))
        row: dict[str, Any] = {"side": name, "join ms": _ms(joining), "leave ms": _ms(leaving)}
        row |= {"together ms": _ms(joining + leaving), "extra MB": round(extra / 1e6, 1)}
        rows.append(row)
    rows[0] |= judge(rows[0]["together ms"], 10, at_least=False)
    return rows


Moves = tuple[float, float, float]
"""Seconds to join, seconds to leave, and bytes of memory that both took for a while."""


def _warm_cache(model: Any) -> BatchedCache:
    """A cache after a forward of one token, so that its shapes are known."""
    cache = BatchedCache(model)
    cache.join()
    cache.begin(0, 1, 1, [1])
    mx.eval(model(mx.zeros((1, 1), mx.int32), cache=cache.layers))
    cache.commit()
    return cache


def _layer_shapes(model: Any) -> list[tuple[int, int]]:
    """(kv_heads, head_dim) per layer."""
    leaves = [leaf for leaf in _warm_cache(model).leaves if isinstance(leaf, BatchedKVCache)]
    return [(leaf.keys.shape[1], leaf.keys.shape[3]) for leaf in leaves if leaf.keys is not None]


def _join_and_leave_ours(model: Any, context: int) -> Moves:
    cache = BatchedCache(model)
    shapes = _layer_shapes(model)
    blocks = [mx.random.normal((heads, context, dim)) for heads, dim in shapes]
    mx.eval(blocks)
    for _ in range(31):
        _join(cache, blocks, context)
    before, start = _memory_mark(), time.perf_counter()
    _join(cache, blocks, context)
    joined = time.perf_counter()
    cache.leave(cache.rows[10])
    mx.eval(cache.arrays)
    return joined - start, time.perf_counter() - joined, mx.get_peak_memory() - before


def _memory_mark() -> int:
    """Bytes in use now, from where the peak is counted: copies show on a busy machine too."""
    mx.reset_peak_memory()
    return mx.get_active_memory()


def _join(cache: BatchedCache, blocks: list[mx.array], context: int) -> None:
    """Admit a row whose K and V are known, as after a prefix hit."""
    row = cache.join()
    leaves = [leaf for leaf in cache.leaves if isinstance(leaf, BatchedKVCache)]
    for leaf, block in zip(leaves, blocks, strict=True):
        leaf.write(row.index, block, block)
    row.length = context
    mx.eval(cache.arrays)


def _join_and_leave_mlx_lm(model: Any, context: int) -> Moves:
    shapes = _layer_shapes(model)
    batch, single = (_lm_caches(shapes, rows, context) for rows in (31, 1))
    before, start = _memory_mark(), time.perf_counter()
    for one, other in zip(batch, single, strict=True):
        one.extend(other)
    mx.eval([cache.state for cache in batch])
    joined = time.perf_counter()
    for one in batch:
        one.filter([row for row in range(32) if row != 10])
    mx.eval([cache.state for cache in batch])
    return joined - start, time.perf_counter() - joined, mx.get_peak_memory() - before


def _lm_caches(shapes: list[tuple[int, int]], rows: int, context: int) -> list[Any]:
    caches = []
    for heads, dim in shapes:
        cache = BatchKVCache([0] * rows)
        block = mx.random.normal((rows, heads, context, dim))
        cache.update_and_fetch(block, block)
        mx.eval(cache.state)
        caches.append(cache)
    return caches


@scenario("memory")
def memory(bench: Bench) -> Rows:
    """Bytes of the KV cache against the bytes of the tokens it holds."""
    tokens = bench.size(128, 24)
    equal = bench.work(32, tokens, prompt=bench.size(256, 32))
    lengths = random.Random(0)
    ragged = [
        Work(bench.prompt(lengths.randrange(16, bench.size(512, 32))), tokens) for _ in range(32)
    ]
    rows = []
    for name, work in (("equal lengths", equal), ("lengths 16..512", ragged)):
        shares = _memory_shares(bench, work)
        found = round(statistics.median(shares), 2)
        row: dict[str, Any] = {
            "rows": name,
            "bytes / needed": found,
            "worst": round(max(shares), 2),
        }
        rows.append(row | judge(found, 1.3, at_least=False))
    return rows


def _memory_shares(bench: Bench, work: list[Work]) -> list[float]:
    """Allocated over needed bytes, at every step at which at least half of the rows are held."""
    shares: list[float] = []
    with our_engine(bench.folder) as ours:

        def look(_: Timing) -> None:
            cache = ours.engine._runner.cache  # we are on the engine's thread here
            held = sum(row.length for row in cache.rows)
            if len(cache.rows) >= len(work) // 2 and held:
                shares.append(cache.nbytes / (bench.kv_bytes_per_token * held))

        ours.run(work, on_step=look)
    return shares


# --- queue, long prompts, small budgets ---------------------------------------------------


@scenario("queue")
def queue(bench: Bench) -> Rows:
    """1,000 waiting requests: what they cost a step of 32 rows."""
    tokens = bench.size(64, 24)
    with our_engine(bench.folder, max_queue=2000) as ours:
        ours.run(bench.work(32, tokens))
        timings = [ours.run(bench.work(32, tokens)) for _ in range(bench.rounds)]
        crowded = _steps_with_queue(bench, ours, tokens)
    step = _median_step(timings)
    adding, planning = _bookkeeping(1000)
    share = 100 * planning / step
    row: dict[str, Any] = {"step ms": _ms(step), "step with 1,000 waiting ms": _ms(crowded)}
    row |= {"plan + update us": round(1e6 * planning, 1), "add one us": round(1e6 * adding, 2)}
    row |= {"share of a step %": round(share, 2)}
    return [row | judge(share, 1.0, at_least=False)]


def _steps_with_queue(bench: Bench, ours: OurEngine, tokens: int) -> float:
    """Median step of 32 rows in front of 1,000 that wait (and are of one token)."""
    crowd = [Work(bench.prompt(2), 1) for _ in range(1000)]
    timing = ours.run([*bench.work(32, tokens), *crowd])
    return _median_step([Timing(timing.times[:32])])


def _bookkeeping(waiting: int) -> tuple[float, float]:
    """Seconds for adding a sequence, and for planning and updating a step of 32 rows."""
    scheduler = ContinuousBatchScheduler(SchedulerConfig(max_batch_size=32))
    everything = [to_row(Work([1, 2, 3], 1000)) for _ in range(32 + waiting)]
    start = time.perf_counter()
    for row in everything:
        scheduler.add(row)
    adding = (time.perf_counter() - start) / len(everything)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        plan = scheduler.schedule()
        scheduler.launched(plan)
        for row in plan.decode:
            scheduler.update(row, [5])
        times.append(time.perf_counter() - start)
    return adding, statistics.median(times)


@scenario("long_prompt")
def long_prompt(bench: Bench) -> Rows:
    """A prompt of 4,096 tokens arrives while 16 rows decode: their time between tokens."""
    tokens, length = bench.size(192, 16), bench.size(4096, 256)
    rows = []
    with our_engine(bench.folder) as ours:
        ours.run(bench.work(16, 8))
        for side in (ours, LmBatchGenerator(bench.loaded)):
            for late in (False, True):
                extra = [(tokens // 8, Work(bench.prompt(length), 4))] if late else []
                timing = side.run(bench.work(16, tokens), late=extra)
                gaps = timing.gaps(0, 16)
                row: dict[str, Any] = {"side": side.name, "long prompt": "yes" if late else "no"}
                for name, share in (("p50 ms", 0.5), ("p95 ms", 0.95), ("worst ms", 1.0)):
                    row[f"gap {name}"] = _ms(percentile(gaps, share))
                first = timing.times[16][0] - timing.times[0][tokens // 8 - 1] if late else None
                rows.append(row | {"its first token ms": _ms(first)})
    return rows


@scenario("budget")
def budget(bench: Bench) -> Rows:
    """KV memory for 8 rows and 64 requests: all of them finish."""
    prompt, tokens = bench.size(64, 16), bench.size(64, 16)
    memory = 8 * (prompt + tokens) * bench.kv_bytes_per_token
    with our_engine(bench.folder, kv_cache_memory=memory) as ours:
        timing = ours.run(bench.work(64, tokens, prompt=prompt))
        stats = ours.engine.stats()
    row: dict[str, Any] = {
        "requests": 64,
        "finished": timing.finished,
        "preemptions": stats.preemptions,
    }
    row |= {"tokens/s": round(timing.tokens_per_second, 1)}
    return [row | judge(timing.finished, 64, at_least=True)]
