"""Scenarios of what the engine shares and guesses: prefixes, and tokens ahead."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

from bundled import checks

from benchlib.scenarios import Bench, Rows, judge, scenario
from benchlib.sides import OurEngine, Work, our_engine
from benchlib.table import ratio
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import BUNDLED, BUNDLED_DRAFT, LoadedModel, load_model

PREFIX = 1024


@scenario("prefix_first_token")
def prefix_first_token(bench: Bench) -> Rows:
    """Time to the first token behind a 1,024-token prefix, cached and cold."""
    size = bench.size(PREFIX, 256)
    times: dict[str, list[float]] = {"cold": [], "cached": []}
    with our_engine(bench.folder) as ours:
        ours.run(bench.work(1, 2))
        for _ in range(bench.rounds + 2):
            shared = bench.prompt(size)
            for name in times:
                work = Work(shared + bench.prompt(16), 2)
                times[name].append(ours.run([work]).times[0][0])
    cold, cached = (statistics.median(times[name]) for name in ("cold", "cached"))
    share = round(cached / cold, 3)
    rows = [{"prefix": name, "first token ms": round(1e3 * v, 1)} for name, v in
            (("cold", cold), ("cached", cached))]  # fmt: skip
    return [rows[0], {**rows[1], "cached / cold": share, **judge(share, 0.1, at_least=False)}]


@scenario("prefix_throughput")
def prefix_throughput(bench: Bench) -> Rows:
    """200 requests of which 90% of the prompt is shared, with the prefix cache on and off."""
    count, size = bench.size(200, 24), bench.size(576, 192)
    shared = bench.prompt(size)
    mine = size // 9
    return _on_and_off(
        bench, lambda: [Work(shared + bench.prompt(mine), 8) for _ in range(count)], 3.0
    )


@scenario("prefix_miss")
def prefix_miss(bench: Bench) -> Rows:
    """Requests that share nothing, with the prefix cache on and off."""
    count = bench.size(64, 12)
    return _on_and_off(bench, lambda: bench.work(count, 32, prompt=128), 0.97)


def _on_and_off(bench: Bench, make: Any, target: float) -> Rows:
    """Time the same kind of work on two engines in turn."""
    seconds: dict[str, list[float]] = {"on": [], "off": []}
    with our_engine(bench.folder) as on, our_engine(bench.folder, prefix_cache_memory=0) as off:
        for number in range(-1, bench.rounds):
            sides = [("on", on), ("off", off)]
            for name, side in sides if number % 2 else sides[::-1]:
                work = make()
                began = time.perf_counter()
                side.run(work, clients=32)
                if number >= 0:
                    seconds[name].append(time.perf_counter() - began)
    on_s, off_s = statistics.median(seconds["on"]), statistics.median(seconds["off"])
    faster = ratio(off_s, on_s)
    return [
        {"prefix cache": "off", "seconds": round(off_s, 2)},
        {
            "prefix cache": "on",
            "seconds": round(on_s, 2),
            "off / on": faster,
            **judge(faster, target, at_least=True),
        },
    ]


# --- speculation on the bundled pair -----------------------------------------------------------


@scenario("speculation")
def speculation(bench: Bench) -> Rows:
    """The bundled pair on recall and tool-call chats: plain, n-gram and draft model."""
    rows: Rows = []
    targets = {1: 1.8, 8: 1.2}
    with contextlib.ExitStack() as stack:
        sides = {
            "plain": stack.enter_context(_bundled(None)),
            "ngram": stack.enter_context(_bundled("ngram")),
            "draft": stack.enter_context(_bundled("draft")),
        }
        for size in (1, 8, 32):
            rows += _compare(bench, sides, size, targets.get(size))
    return rows


@scenario("table")
def table(bench: Bench) -> Rows:
    """Baseline, speculative, batching (8), both: the bundled pair on recall and tool calls."""
    rows: Rows = []
    with _bundled(None) as plain, _bundled("ngram") as guessing:
        cases = [
            ("baseline", plain, 1),
            ("speculative", guessing, 1),
            ("batching (8)", plain, 8),
            ("both", guessing, 8),
        ]
        found: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in cases}
        for number in range(-1, bench.rounds):
            for name, side, clients in cases:
                measured = _measure(bench, side, clients, number)
                if number >= 0:
                    found[name].append(measured)
        base = statistics.median(speed for speed, _ in found["baseline"])
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


@contextlib.contextmanager
def _bundled(kind: str | None) -> Iterator[OurEngine]:
    engine = Engine(
        lambda: load_model(BUNDLED),
        EngineConfig(speculative=kind, num_draft_tokens=6),
        lambda: load_model(BUNDLED_DRAFT),
    )
    engine.start()
    try:
        engine.wait_ready(120)
        yield OurEngine(engine)
    finally:
        engine.stop()


def _compare(
    bench: Bench, sides: dict[str, OurEngine], size: int, target: float | None
) -> Iterator[dict[str, Any]]:
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(-1, bench.rounds):
        for name in list(sides) if number % 2 else list(sides)[::-1]:
            speed, _ = _measure(bench, sides[name], size, number)
            if number >= 0:
                speeds[name].append(speed)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    best = max(medians["ngram"], medians["draft"])
    for name, speed in medians.items():
        row: dict[str, Any] = {"side": name, "rows": size, "tokens/s": round(speed, 1)}
        row["it / plain"] = ratio(speed, medians["plain"])
        stats = sides[name].engine.speculative_stats()
        if stats is not None:
            row["accepted"] = round(stats.acceptance_rate, 2)
            row["tokens a step"] = round(stats.mean_accepted_length, 2)
        if target is not None and name != "plain" and speed == best:
            row |= judge(row["it / plain"], target, at_least=True)
        yield row


def _measure(bench: Bench, side: OurEngine, clients: int, number: int) -> tuple[float, float]:
    """Tokens a second over the tasks' answers, and the median seconds of one.

    Every round asks what no round before it did: guesses may come from earlier answers.
    The prompts are in the prefix cache, since this is about decoding.
    """
    loaded = side.engine.loaded
    assert loaded is not None
    ends = {"ignore_eos": False, "eos_token_ids": loaded.eos_token_ids}
    count = max(bench.size(64, 8), clients)
    prompts = _task_prompts(loaded, f"{clients} {number}", count)
    side.run([Work(prompt, 1, ends) for prompt in prompts], clients=clients)
    timing = side.run([Work(prompt, 96, ends) for prompt in prompts], clients=clients)
    answers = [times[-1] - times[0] for times in timing.times if times]
    return timing.tokens_per_second, statistics.median(answers)


def _task_prompts(loaded: LoadedModel, seed: str, count: int) -> list[list[int]]:
    """Recall and tool-call chats in turn."""
    prompts: list[list[int]] = []
    for check in checks.tasks(seed, count):
        offered = {"tools": check.tools} if check.tools else {}
        ids = loaded.tokenizer.apply_chat_template(
            check.messages, add_generation_prompt=True, **offered
        )
        prompts.append(list(ids))
    return prompts
