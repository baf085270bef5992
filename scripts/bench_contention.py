#!/usr/bin/env python3
"""Measures the server beside other busy processes: by itself, and with one and two fixed threads.

    scripts/bench_contention.py                       # 27m, 8 clients
    scripts/bench_contention.py --model-path FOLDER --clients 1 --rounds 5
    scripts/bench_contention.py --blas-alone          # also OpenBLAS with its own threads

Each server gets the same requests in turn, while nothing else runs, beside a busy loop of the
usual priority (nice 0) and beside one that wants only what is left (nice 19). The ratio is the
server as it starts by itself over the better one of the fixed numbers of threads, by medians:
at least 0.75 is wanted. The spread is that of the rounds, whose better one is also the luckier.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import asyncio
import contextlib
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import bench_models
from benchlib.load_client import Target, closed_loop
from benchlib.servers import SpawnedServer, our_command, spawn
from benchlib.table import format_table

from mlx_parallm.cpu.huge_pages import restart_with_huge_pages

WANTED = 0.75
SITUATIONS = {"alone": None, "busy loop, nice 0": 0, "busy loop, nice 19": 19}
SIDES = {
    "by itself": {},
    "1 thread": {"OPENBLAS_NUM_THREADS": "1"},
    "2 threads": {"OPENBLAS_NUM_THREADS": "2"},
}
BLAS_ALONE = {"OpenBLAS, 2 threads": {"MLX_PARALLM_PRODUCTS": "off", "OPENBLAS_NUM_THREADS": "2"}}


def main() -> None:
    """Print a row for each situation."""
    restart_with_huge_pages()  # as the server does
    args = _arguments()
    shapes = bench_models.SHAPES
    folder = bench_models.ensure(args.model_path) if args.model_path in shapes else args.model_path
    sides = SIDES | BLAS_ALONE if args.blas_alone else SIDES
    with contextlib.ExitStack() as stack:
        servers = {}
        for name, variables in sides.items():
            settings = [f"{key}={value}" for key, value in variables.items()]
            command = ["env", *settings, *our_command(folder)]
            servers[name] = stack.enter_context(spawn(name, command))
        for server in servers.values():
            _tokens_per_second(server, args, seed=0)  # warm
        rows = [_row(name, servers, args) for name in SITUATIONS]
    print(format_table(rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-path", default="27m", help="folder, tiny, 27m or 125m")
    add("--clients", type=int, default=8)
    add("--tokens", type=int, default=32, help="of each answer")
    add("--prompt", type=int, default=32, help="tokens")
    add("--rounds", type=int, default=3)
    add("--blas-alone", action="store_true", help="also as where nothing can be compiled")
    return parser.parse_args()


def _row(name: str, servers: dict[str, SpawnedServer], args: argparse.Namespace) -> dict[str, Any]:
    speeds: dict[str, list[float]] = {side: [] for side in servers}
    with _busy_loop(SITUATIONS[name]):
        for round_ in range(1, args.rounds + 1):
            for side, server in servers.items():
                speeds[side].append(_tokens_per_second(server, args, seed=round_))
    fixed = zip(speeds["1 thread"], speeds["2 threads"], strict=True)
    better = [max(pair) for pair in fixed]
    ratios = [ours / best for ours, best in zip(speeds["by itself"], better, strict=True)]
    medians = {side: statistics.median(values) for side, values in speeds.items()}
    ratio = medians["by itself"] / max(medians["1 thread"], medians["2 threads"])
    row: dict[str, Any] = {"tokens/s": name}
    row |= {side: round(speed, 1) for side, speed in medians.items()}
    row |= {"ratio": round(ratio, 2), "spread": f"{min(ratios):.2f}-{max(ratios):.2f}"}
    return row | {"met": ratio >= WANTED}


@contextlib.contextmanager
def _busy_loop(niceness: int | None) -> Iterator[None]:
    if niceness is None:
        yield
        return
    command = ["nice", "-n", str(niceness), sys.executable, "-S", "-c", "while True: pass"]
    process = subprocess.Popen(command)
    try:
        time.sleep(0.5)
        yield
    finally:
        process.kill()
        process.wait()


def _tokens_per_second(server: SpawnedServer, args: argparse.Namespace, seed: int) -> float:
    target = Target(server.url, "/v1/completions")
    rng = random.Random(seed)
    requests = [
        target.request(
            {
                "prompt": [rng.randrange(1000) for _ in range(args.prompt)],
                "max_tokens": args.tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )
        for _ in range(2 * args.clients)
    ]
    run = asyncio.run(closed_loop(target, requests, args.clients, timeout_s=600))
    if errors := [reply.error for reply in run.replies if reply.error]:
        raise SystemExit(f"{server.name}: {errors[0]}")
    return sum(reply.output_tokens for reply in run.replies) / run.seconds


if __name__ == "__main__":
    main()
