"""Scenarios of prefixes that requests share."""

from __future__ import annotations

import statistics
import time
from typing import Any

from benchlib.scenarios import Bench, Rows, judge, scenario
from benchlib.sides import Work, our_engine
from benchlib.table import ratio

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
