"""Scenarios of tokens guessed ahead, on the bundled pair."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bundled import checks

from benchlib.scenarios import Bench, Rows, judge, scenario
from benchlib.sides import OurEngine
from benchlib.work import Timing, Work
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import BUNDLED, BUNDLED_DRAFT, LoadedModel, load_model

_REQUESTS = 64  # of a round that is not compared with another
# Rounds for each of --rounds, with few requests each: a shared machine is slow for seconds,
# and so for both sides of a short round.
_SHORT_ROUNDS = 8
_FEW_REQUESTS = 8

# (seed, requests) -> what to run on a model.
Make = Callable[[LoadedModel, str, int], list[Work]]


@dataclass
class _Speeds:
    """Tokens a second, round by round: of all rows together, and of a row while it decodes."""

    all: list[float] = field(default_factory=list)
    row: list[float] = field(default_factory=list)

    def add(self, timing: Timing) -> None:
        """One more round."""
        self.all.append(timing.tokens_per_second)
        decoding = [times for times in timing.times if len(times) > 1]
        tokens = sum(len(times) - 1 for times in decoding)
        self.row.append(tokens / sum(times[-1] - times[0] for times in decoding))


def _paired(ours: list[float], others: list[float]) -> tuple[float, float]:
    """The geometric mean of the rounds' ratios, and its standard error. Not the median, which
    would not show what happens in a few rounds only."""
    ratios = [math.log(a / b) for a, b in zip(ours, others, strict=True)]
    mean = math.exp(statistics.fmean(ratios))
    error = statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else 0.0
    return round(mean, 3), round(mean * error, 3)


@scenario("speculation")
def speculation(bench: Bench) -> Rows:
    """The bundled pair on recall and tool-call chats: plain, n-gram and draft model."""
    rows: Rows = []
    with _sides("plain", "ngram", "draft") as sides:
        for size, target in ((1, 1.8), (8, 1.2), (32, None)):
            found = _alternate(bench, sides, size, _tasks)
            best = max(("ngram", "draft"), key=lambda name: statistics.median(found[name].row))
            for name, speeds in found.items():
                row = _row(name, size, speeds, found["plain"])
                stats = sides[name].engine.speculative_stats()
                if stats is not None:
                    row["accepted"] = round(stats.acceptance_rate, 2)
                    row["tokens a step"] = round(stats.mean_accepted_length, 2)
                if target is not None and name == best:
                    row |= judge(row["a row / plain"], target, at_least=True)
                rows.append(row)
    return rows


@scenario("speculation_loss")
def speculation_loss(bench: Bench) -> Rows:
    """Where nothing can be guessed (random text): what having speculation on costs."""
    rows: Rows = []
    with _sides("plain", "ngram", "draft") as sides:
        for size in (1, 4) if bench.quick else (1, 2, 4, 8, 16, 32):
            found = _alternate(bench, sides, size, _noise)
            for name, speeds in found.items():
                row = _row(name, size, speeds, found["plain"])
                if name != "plain":
                    row |= judge(row["all / plain"], 0.97, at_least=True)
                rows.append(row)
    return rows


@scenario("speculation_mixed")
def speculation_mixed(bench: Bench) -> Rows:
    """Every other row has use_speculative off: the batch loses nothing by the mixture."""
    rows: Rows = []
    with _sides("plain", "ngram") as sides:
        for size in (4,) if bench.quick else (8, 32):
            found = _alternate(bench, sides, size, _half_of_the_tasks)
            for name, speeds in found.items():
                row = _row(name, size, speeds, found["plain"])
                if name != "plain":
                    row |= judge(row["all / plain"], 1.0, at_least=True)
                rows.append(row)
    return rows


@scenario("table")
def table(bench: Bench) -> Rows:
    """Baseline, speculative, batching (8), both: the bundled pair on recall and tool calls."""
    found: dict[str, list[tuple[float, float]]] = {}
    with _sides("plain", "ngram") as sides:
        cases = [
            ("baseline", "plain", 1),
            ("speculative", "ngram", 1),
            ("batching (8)", "plain", 8),
            ("both", "ngram", 8),
        ]
        for number in range(-1, bench.rounds):
            for name, side, clients in cases:
                timing = _run(bench, sides[side], clients, number, _tasks)
                latency = statistics.median(t[-1] - t[0] for t in timing.times if t)
                if number >= 0:
                    found.setdefault(name, []).append((timing.tokens_per_second, latency))
    base = statistics.median(speed for speed, _ in found["baseline"])
    rows: Rows = []
    for name, values in found.items():
        speed = statistics.median(value for value, _ in values)
        latency = statistics.median(value for _, value in values)
        rows.append(
            {
                "method": name,
                "tokens/s": round(speed, 1),
                "latency ms": round(1e3 * latency, 1),
                "throughput": f"{speed / base:.2f}x",
            }
        )
    return rows


def _row(name: str, size: int, speeds: _Speeds, plain: _Speeds) -> dict[str, Any]:
    of_all, all_error = _paired(speeds.all, plain.all)
    of_row, row_error = _paired(speeds.row, plain.row)
    return {
        "side": name,
        "rows": size,
        "tokens/s": round(statistics.median(speeds.all), 1),
        "all / plain": of_all,
        "+-": all_error,
        "a row's tokens/s": round(statistics.median(speeds.row), 1),
        "a row / plain": of_row,
        "row +-": row_error,
    }


def _alternate(
    bench: Bench, sides: Mapping[str, OurEngine], size: int, make: Make
) -> dict[str, _Speeds]:
    """All sides in turn, in many short rounds; the first one is longer and not counted."""
    found = {name: _Speeds() for name in sides}
    for number in range(-1, 1 if bench.quick else bench.rounds * _SHORT_ROUNDS):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            requests = _REQUESTS if number < 0 else _FEW_REQUESTS
            timing = _run(bench, sides[name], size, number, make, requests)
            if number >= 0:
                found[name].add(timing)
    return found


def _run(
    bench: Bench, side: OurEngine, clients: int, number: int, make: Make, requests: int = _REQUESTS
) -> Timing:
    """One round of the tasks.

    Every round asks what no round before it did: guesses may come from earlier answers.
    The prompts are in the prefix cache, since this is about decoding.
    """
    loaded = side.engine.loaded
    assert loaded is not None
    work = make(loaded, f"{clients} {number}", max(bench.size(requests, 8), 2 * clients))
    side.run([Work(piece.prompt, 1) for piece in work], clients=clients)
    return side.run(work, clients=clients)


def _tasks(loaded: LoadedModel, seed: str, count: int) -> list[Work]:
    """Recall and tool-call chats in turn, answered to their ends."""
    ends = {"ignore_eos": False, "eos_token_ids": loaded.eos_token_ids}
    return [Work(prompt, 96, ends) for prompt in _prompts(loaded, seed, count)]


def _half_of_the_tasks(loaded: LoadedModel, seed: str, count: int) -> list[Work]:
    """The same, every other one without speculation."""
    work = _tasks(loaded, seed, count)
    for place in range(1, count, 2):
        plain = {**work[place].sampling, "speculative": False}
        work[place] = Work(work[place].prompt, work[place].tokens, plain)
    return work


def _noise(loaded: LoadedModel, seed: str, count: int) -> list[Work]:
    """The same prompts, answered with tokens that are almost drawn by lot."""
    settings = {"temperature": 8.0}
    return [Work(prompt, 48, settings) for prompt in _prompts(loaded, seed, count)]


def _prompts(loaded: LoadedModel, seed: str, count: int) -> Iterator[list[int]]:
    for check in checks.tasks(seed, count):
        offered = {"tools": check.tools} if check.tools else {}
        ids: Sequence[int] = loaded.tokenizer.apply_chat_template(
            check.messages, add_generation_prompt=True, **offered
        )
        yield list(ids)


@contextlib.contextmanager
def _sides(*names: str) -> Iterator[dict[str, OurEngine]]:
    """Started engines on the bundled pair."""
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(_engine(name)) for name in names}


@contextlib.contextmanager
def _engine(name: str) -> Iterator[OurEngine]:
    engine = Engine(
        lambda: load_model(BUNDLED),
        EngineConfig(speculative=None if name == "plain" else name),
        lambda: load_model(BUNDLED_DRAFT),
    )
    engine.start()
    try:
        engine.wait_ready(120)
        yield OurEngine(engine)
    finally:
        engine.stop()
