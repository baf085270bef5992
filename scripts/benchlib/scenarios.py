"""The scenarios of bench_engine.py. Add one: write a function, put @scenario on it.

Speeds of a shared machine drift, so sides take turns in rounds and medians are compared.
A target is a ratio or a bound that the project wants to reach; a row says whether it does.
"""

from __future__ import annotations

import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import asyncio
import gc
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

from benchlib.load_client import Target, closed_loop
from benchlib.servers import our_command, spawn
from benchlib.sides import OurEngine, our_engine, to_row
from benchlib.stock import BATCH_GENERATOR, PLAIN_LOOP, Stock, StockSide
from benchlib.table import percentile, ratio
from benchlib.work import Side, Timing, Work
from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.engine.plan import SchedulerConfig
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.models.loader import LoadedModel, load_model

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
    def limits(self) -> tuple[int, int]:
        """Tokens of the vocabulary and of the context.

        The model that says it is not kept: a large one beside the engine's is too much for a
        device, and would count in the engine's peak of memory.
        """
        if "loaded" in vars(self):
            return self.loaded.vocab_size, self.loaded.max_model_len
        loaded = load_model(str(self.folder))
        found = loaded.vocab_size, loaded.max_model_len
        del loaded
        gc.collect()
        mx.clear_cache()
        return found

    @property
    def context(self) -> int:
        """Tokens of prompt and output together."""
        return self.limits[1]

    @cached_property
    def stock(self) -> Stock:
        """The process in which mlx-lm runs as installed."""
        return Stock(self.folder)

    @property
    def batch_generator(self) -> StockSide:
        """mlx-lm's BatchGenerator."""
        return StockSide(self.stock, BATCH_GENERATOR)

    @property
    def plain_loop(self) -> StockSide:
        """A loop over mlx-lm's model."""
        return StockSide(self.stock, PLAIN_LOOP)

    def close(self) -> None:
        """End what was started."""
        if "stock" in vars(self):
            self.stock.close()

    @cached_property
    def kv_bytes_per_token(self) -> int:
        """Bytes of K and V of one token in all layers."""
        return warm_cache(self.loaded.model).bytes_per_token

    def size(self, full: int, quick: int) -> int:
        """A size that depends on `quick`."""
        return quick if self.quick else full

    def prompt(self, tokens: int) -> list[int]:
        """Random token ids, different at every call."""
        self.seed += 1
        rng = random.Random(self.seed)
        return [rng.randrange(self.limits[0]) for _ in range(tokens)]

    def work(
        self, rows: int, tokens: int, mix: Sequence[Mapping[str, float]] = ({},), prompt: int = 64
    ) -> list[Work]:
        """`rows` pieces of work, their sampling settings taken in turn from the mix."""
        return [Work(self.prompt(prompt), tokens, mix[i % len(mix)]) for i in range(rows)]


def warm_cache(model: Any) -> BatchedCache:
    """A cache after a forward of one token, so that its shapes are known."""
    cache = BatchedCache(model)
    cache.join()
    cache.begin(0, 1, 1, [1])
    mx.eval(model(mx.zeros((1, 1), mx.int32), cache=cache.layers))
    cache.commit()
    return cache


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


def ms(seconds: float | None) -> float | None:
    """Milliseconds, rounded for a table."""
    return None if seconds is None else round(1000 * seconds, 2)


# --- throughput ---------------------------------------------------------------------------


@scenario("greedy")
def greedy(bench: Bench) -> Rows:
    """All rows greedy, against BatchGenerator and a plain loop."""
    others = [bench.batch_generator, bench.plain_loop]
    return list(_throughput(bench, others, [{}], {}))


@scenario("mixed")
def mixed(bench: Bench) -> Rows:
    """Rows with different sampling settings, against BatchGenerator."""
    targets = {1: 1.2, 8: 1.5, 32: 1.8}
    return list(_throughput(bench, [bench.batch_generator], MIXED, targets))


@scenario("top_p")
def top_p(bench: Bench) -> Rows:
    """All rows with top_p, against BatchGenerator."""
    return list(_throughput(bench, [bench.batch_generator], TOP_P, {32: 3.0}))


def _throughput(
    bench: Bench,
    others: Sequence[StockSide],
    mix: Sequence[Mapping[str, float]],
    targets: Mapping[int, float],
) -> Iterator[dict[str, Any]]:
    tokens = bench.size(64, 24)
    with our_engine(bench.folder) as ours:
        sides: list[Side] = [ours, *others]
        for rows in (1, 4) if bench.quick else (1, 8, 32):
            found: dict[str, list[Timing]] = {side.name: [] for side in sides}
            for number in range(-1, bench.rounds):
                for side in sides if number % 2 else sides[::-1]:
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
                row["step ms"] = ms(_median_step(timings))
                row["ours / it"] = ratio(speeds[ours.name], speeds[name])
                if name == BATCH_GENERATOR and rows in targets:
                    row |= judge(row["ours / it"], targets[rows], at_least=True)
                yield row


def _speed(timings: list[Timing]) -> float:
    return statistics.median(timing.tokens_per_second for timing in timings)


def _median_step(timings: list[Timing]) -> float | None:
    """Seconds of a step in which all rows decoded; None where there was none.

    With a slow model the first rows end before the last prompt has been read.
    """
    steps = [step for timing in timings for step in timing.steps()]
    return statistics.median(steps) if steps else None


def full_steps(bench: Bench, side: Side, rows: int) -> tuple[int, list[float]]:
    """How many tokens a row needs for a quarter of its steps to be of all rows, and those steps.

    Raises:
        BenchError: the model's context is too short for it.
    """
    prompt, tokens = 64, bench.size(64, 24)
    while prompt + tokens <= bench.context:
        timing = side.run(bench.work(rows, tokens, prompt=prompt))
        if len(steps := timing.steps()) >= tokens // 4:
            return tokens, steps
        tokens *= 2
    raise BenchError(f"{rows} rows never all decode together within the model's context")


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
    floors = []
    products = _products(bench.loaded.model, 32)
    with our_engine(bench.folder) as ours:
        tokens, steps = full_steps(bench, ours, 32)
        for _ in range(bench.rounds):
            floors += _time_products(products, bench.size(20, 3))
            steps += ours.run(bench.work(32, tokens)).steps()
    step, least = statistics.median(steps), statistics.median(floors)
    found = ratio(step, least)
    row = {"step ms": ms(step), "floor ms": ms(least), "step / floor": found}
    return [row | judge(found, 2.2, at_least=False)]


Product = Callable[[], mx.array]


def _products(model: Any, rows: int) -> list[list[Product]]:
    """Every product of a step, in one or two layouts of the weights.

    Which layout of plain weights is faster depends on the BLAS; the floor is the faster one.
    """
    modules = [m for _, m in model.named_modules()]
    tied = not hasattr(model, "lm_head")  # the embedding is the last product's weight
    quantised: list[Any] = [m for m in modules if isinstance(m, nn.QuantizedLinear)]
    quantised += [m for m in modules if tied and isinstance(m, nn.QuantizedEmbedding)]
    if quantised:
        return [[_quantised_product(m, rows) for m in quantised]]
    weights = [m.weight for m in modules if isinstance(m, nn.Linear)]
    weights += [m.weight for m in modules if tied and isinstance(m, nn.Embedding)]
    columns_first = [mx.contiguous(w.T) for w in weights]
    mx.eval(columns_first)
    return [[_product(w.T, rows) for w in weights], [_product(w, rows) for w in columns_first]]


def _product(weight: mx.array, rows: int) -> Product:
    x = mx.random.normal((rows, weight.shape[0])).astype(weight.dtype)
    mx.eval(x)
    return lambda: x @ weight


def _quantised_product(module: Any, rows: int) -> Product:
    width = module.scales.shape[1] * module.group_size
    x = mx.random.normal((rows, width)).astype(module.scales.dtype)
    mx.eval(x)
    call = module.as_linear if isinstance(module, nn.QuantizedEmbedding) else module
    return lambda: call(x)


def _time_products(layouts: list[list[Product]], repeats: int) -> list[float]:
    """Times of the faster layout, in seconds."""
    found = []
    for products in layouts:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            mx.eval([product() for product in products])
            times.append(time.perf_counter() - start)
        found.append(times)
    return min(found, key=statistics.median)


# --- queue, long prompts, small budgets ---------------------------------------------------


@scenario("queue")
def queue(bench: Bench) -> Rows:
    """1,000 waiting requests: what they cost a step of 32 rows."""
    with our_engine(bench.folder, max_queue=2000) as ours:
        tokens, steps = full_steps(bench, ours, 32)
        for _ in range(bench.rounds):
            steps += ours.run(bench.work(32, tokens)).steps()
        crowded = _steps_with_queue(bench, ours, tokens)
    step = statistics.median(steps)
    adding, planning = _bookkeeping(1000)
    share = 100 * planning / step
    row: dict[str, Any] = {"step ms": ms(step), "step with 1,000 waiting ms": ms(crowded)}
    row |= {"plan + update us": round(1e6 * planning, 1), "add one us": round(1e6 * adding, 2)}
    row |= {"share of a step %": round(share, 2)}
    return [row | judge(share, 1.0, at_least=False)]


def _steps_with_queue(bench: Bench, ours: OurEngine, tokens: int) -> float | None:
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
    """A prompt of 4,096 tokens (or half the context) comes while 16 rows decode: their gaps."""
    rows: Rows = []
    with our_engine(bench.folder) as ours:
        ours.run(bench.work(16, 8))
        sides: list[Side] = [ours, bench.batch_generator]
        for side in sides:
            found = [
                [_gaps(bench, side, late) for late in (False, True)] for _ in range(bench.rounds)
            ]
            without, beside = (
                {k: _median([r[i][k] for r in found]) for k in _GAPS} for i in (0, 1)
            )
            against = ratio(beside["gap p95 ms"], without["gap p95 ms"])
            row = {"side": side.name, "long prompt": "yes", **beside, "p95 / without": against}
            if side is ours:
                row |= judge(against, 3.0, at_least=False)
            rows += [{"side": side.name, "long prompt": "no", **without}, row]
    return rows


_LONG_PROMPT = 4096
_GAPS = ("gap p50 ms", "gap p95 ms", "gap worst ms", "its first token ms")


def _gaps(bench: Bench, side: Side, late: bool) -> dict[str, float | None]:
    """Times between the tokens of 16 rows, beside a long prompt or not."""
    tokens, length = bench.size(192, 16), bench.size(_LONG_PROMPT, 256)
    length = min(length, bench.context // 2)
    extra = [(tokens // 8, Work(bench.prompt(length), 4))] if late else []
    timing = side.run(bench.work(16, tokens), late=extra)
    gaps = timing.gaps(0, 16)
    found: list[float | None] = [percentile(gaps, share) for share in (0.5, 0.95, 1.0)]
    first = timing.times[16][0] - timing.times[0][tokens // 8 - 1] if late else None
    return dict(zip(_GAPS, [ms(value) for value in [*found, first]], strict=True))


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


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
