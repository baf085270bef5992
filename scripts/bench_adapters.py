#!/usr/bin/env python3
"""What adapters cost: the time of a decode step of 32 rows, over one without adapters.

    scripts/bench_adapters.py --model-path 27m
    scripts/bench_adapters.py --model-path FOLDER --rounds 5 --json adapters.json

Cases take turns in rounds, and medians of steps are compared: of the time that they took, and of
the processors' time, which other processes hardly change.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)
import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import argparse
import itertools
import json
import statistics
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_models
import numpy as np
from benchlib.table import format_table

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import Output, SamplingParams
from mlx_parallm.engine.sequence import Sequence as Row
from mlx_parallm.models.loader import load_model
from mlx_parallm.models.lora.delta import AdapterWeights, Delta
from mlx_parallm.models.lora.modules import Modules, width_of

ROWS, RANK = 32, 16
SOME = ("q_proj", "v_proj")
ALL = (*SOME, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
# case -> (linears, adapters that rows share, the most that a step may take)
CASES: dict[str, tuple[tuple[str, ...], int, float | None]] = {
    "none, others loaded": ((), 0, 1 / 0.99),
    "q and v, 1": (SOME, 1, None),
    "q and v, 8": (SOME, 8, 1.10),
    "all, 1": (ALL, 1, None),
    "all, 8": (ALL, 8, 1.25),
}


def random_adapter(name: str, modules: Modules, linears: Sequence[str]) -> Adapter:
    """Small random weights for every linear layer of these names."""
    rng, deltas = np.random.default_rng(len(name)), {}
    for path in modules.paths:
        if path.rpartition(".")[2] in linears:
            out, width = width_of(modules[path])
            a = rng.normal(size=(width, RANK)).astype(np.float32) * 0.01
            b = rng.normal(size=(RANK, out)).astype(np.float32) * 0.01
            deltas[path] = Delta(a, b)
    return Adapter(name, 1, AdapterWeights(deltas, name))


class Side:
    """An engine, and the median step of full batches in it."""

    def __init__(self, folder: Path) -> None:
        config = EngineConfig(prefix_cache_memory=0, max_loras=18)
        self.engine = Engine(lambda: load_model(str(folder)), config)
        self.engine.start()
        self.engine.wait_ready()

    def step(self, adapters: Sequence[Adapter | None], tokens: int) -> tuple[float, float]:
        """Seconds, and seconds of all processors."""
        moments: list[tuple[float, float]] = []
        open_rows, done = ROWS, threading.Event()

        def sink(outputs: list[Output]) -> None:
            nonlocal open_rows
            if len(outputs) == ROWS and open_rows == ROWS:
                moments.append((time.perf_counter(), time.process_time()))
            open_rows -= sum(output.finish_reason is not None for output in outputs)
            if not open_rows:
                done.set()

        params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True)
        rows = [
            Row([5 + place] * 8, params, adapter=adapters[place % len(adapters)])
            for place in range(ROWS)
        ]
        self.engine.submit(rows, sink)
        done.wait()
        pairs = list(itertools.pairwise(moments[2:]))
        taken, worked = (statistics.median(b[n] - a[n] for a, b in pairs) for n in (0, 1))
        return taken, worked


def measure(folder: Path, rounds: int, tokens: int) -> list[dict[str, Any]]:
    """A row for each case."""
    plain, mixed = Side(folder), Side(folder)
    modules = mixed.engine.adapter_modules()
    sets: dict[str, list[Adapter | None]] = {
        name: [random_adapter(f"{name} {n}", modules, linears) for n in range(count)] or [None]
        for name, (linears, count, _) in CASES.items()
    }
    for adapters in sets.values():  # onto the device, all of them
        mixed.step(adapters, 4)
    times: dict[str, list[float]] = {name: [] for name in CASES}
    ratios: dict[str, list[float]] = {name: [] for name in CASES}
    work: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, adapters in sets.items():
            base, base_work = plain.step([None], tokens)
            taken, worked = mixed.step(adapters, tokens)
            times[name].append(taken)
            ratios[name].append(taken / base)
            work[name].append(worked / base_work)
    for side in (plain, mixed):
        side.engine.stop()
    return [_row(name, times[name], ratios[name], work[name]) for name in CASES]


def _row(name: str, times: list[float], ratios: list[float], work: list[float]) -> dict[str, Any]:
    target, found = CASES[name][2], statistics.median(ratios)
    return {
        "case": name,
        "step ms": round(statistics.median(times) * 1e3, 2),
        "over base": round(found, 3),
        "from": round(min(ratios), 3),
        "to": round(max(ratios), 3),
        "work over base": round(statistics.median(work), 3),
        "target": None if target is None else round(target, 2),
        "met": None if target is None else found <= target,
    }


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model-path", default="27m", help="folder, or a name of bench_models.py")
    parser.add_argument("--rounds", type=int, default=5, help="how often the cases take turns")
    parser.add_argument("--tokens", type=int, default=40, help="steps of each case and round")
    parser.add_argument("--json", type=Path, help="file for all rows")
    args = parser.parse_args()
    rows = measure(bench_models.folder_of(args.model_path), args.rounds, args.tokens)
    print(format_table(rows))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
