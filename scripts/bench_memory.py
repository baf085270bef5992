#!/usr/bin/env python3
"""Decode step time with memories: 0, 1k, 16k and 100k of them, 1, 8 and 32 rows, each search.

    python scripts/bench_memory.py --model bundled --output bench_memory.json
    python scripts/bench_memory.py --model bundled --all-layers

Memories are random K and V of the model's shape, since only their number counts. All
rows share one collection, and the layers that the model's config.json names use it (or all).
A step is one decode forward with greedy sampling; the table
has the median and the best of `--steps` of them, and in brackets the ratios to the step
without memories. `--cpu-time` counts the process' CPU time instead of the clock's, which
says more on a machine that is busy with other things. `--layer` times the search of one
layer alone, against FAISS.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

import mlx_parallm  # noqa: F401  opens the fast BLAS before MLX is imported
from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.cache.retrieval import LayerMemory
from mlx_parallm.cpu.blas import fit_threads
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.memory.backends.faiss_backend import make_index
from mlx_parallm.memory.capture import Capture, Window
from mlx_parallm.memory.request import MemoryRequest
from mlx_parallm.memory.view import MemoryView
from mlx_parallm.models.loader import load_model

PROMPT = 32
_ONE = Window(0, 0, 1)


class _Document:
    def __init__(self, size: int) -> None:
        self.num_memories = size


def random_view(capture: Capture, size: int) -> MemoryView:
    """`size` random memories in every layer."""
    ((_, kept),) = capture.steps(np.zeros(1, dtype=np.int32), _ONE, lambda: 1)
    layers = []
    for keys, values in kept:
        shape = (keys.shape[0], size, keys.shape[2])
        layers.append(
            LayerMemory(
                mx.random.normal(shape).astype(keys.dtype),
                mx.random.normal((*shape[:2], values.shape[2])).astype(values.dtype),
            )
        )
        mx.eval(layers[-1].arrays)
    return MemoryView((size,), "zero", (_Document(size),), layers)  # type: ignore[arg-type]


class Steps:
    """Decode steps of some rows."""

    clock = staticmethod(time.perf_counter)

    def __init__(self, runner: ModelRunner, rows: int, request: MemoryRequest | None) -> None:
        self.model, self.cache = runner.model, BatchedCache(runner.model)
        for _ in range(rows):
            row = self.cache.join()
            if request is not None:
                row.memory, row.shift = request, request.shift
        self.rows = rows
        self._forward(mx.ones((rows, PROMPT), dtype=mx.int32), PROMPT)
        self.tokens = mx.ones((rows, 1), dtype=mx.int32)

    def step(self) -> float:
        """Seconds of one step."""
        began = self.clock()
        logits = self._forward(self.tokens, 1)
        self.tokens = mx.argmax(logits[:, -1:], axis=-1).astype(mx.int32)
        mx.eval(self.tokens, self.cache.arrays)
        return self.clock() - began

    def _forward(self, inputs: mx.array, width: int) -> mx.array:
        self.cache.begin(0, self.rows, width, [width] * self.rows)
        logits: mx.array = self.model(inputs, cache=self.cache.layers)
        self.cache.commit()
        return logits


def measure_steps(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of a step for every size and number of rows."""
    loaded = load_model(args.model)
    fit_threads(loaded.largest_matrix)
    runner = ModelRunner(loaded.model, loaded.vocab_size)
    capture = Capture(loaded.model)
    own = loaded.memory_defaults.get("layers")
    layers = None if args.all_layers or own is None else frozenset(own)
    views = {size: random_view(capture, size) for size in args.sizes if size}
    results = []
    for rows in args.rows:
        runs = {
            size: Steps(
                runner, rows, MemoryRequest(views[size], args.topk, layers=layers) if size else None
            )
            for size in args.sizes
        }
        times: dict[int, list[float]] = {size: [] for size in args.sizes}
        for _ in range(args.steps):  # in turn, so that a noisy machine is noisy for all
            for size, run in runs.items():
                times[size].append(run.step())
        base = statistics.median(times[0][2:]) if 0 in times else None
        for size, taken in times.items():
            median = statistics.median(taken[2:])
            results.append(
                {
                    "rows": rows,
                    "memories": size,
                    "search": "own",
                    "median_ms": 1e3 * median,
                    "best_ms": 1e3 * min(taken),
                    "ratio": median / base if base else None,
                    "best_ratio": min(taken) / min(times[0]) if base else None,
                }
            )
            print(_row(results[-1]), flush=True)
    return results


def _row(result: dict[str, Any]) -> str:
    return (
        f"{result['search']:>6} {result['rows']:3d} rows {result['memories']:7d} memories "
        f"{result['median_ms']:9.2f} ms (best {result['best_ms']:.2f}"
        + (f", x{result['ratio']:.2f}, best x{result['best_ratio']:.2f}" if result["ratio"] else "")
        + ")"
    )


def measure_layer(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Milliseconds of one layer's search: (kv_heads, group, dim) = (2, 4, 64)."""
    import faiss

    heads, group, dim = 2, 4, 64
    rng = np.random.default_rng(0)
    results = []
    for size in [size for size in args.sizes if size]:
        keys = rng.standard_normal((heads, size, dim)).astype(np.float32)
        memory = LayerMemory(mx.array(keys), mx.array(keys))
        mx.eval(memory.arrays)
        unit = np.array(memory.unit)
        kinds = {"flat": [make_index(u, size) for u in unit]}
        if args.hnsw:
            kinds["hnsw"] = [make_index(u, 0) for u in unit]
        for rows in args.rows:
            queries = rng.standard_normal((heads, rows * group, dim)).astype(np.float32)
            lazy = mx.array(queries)

            def search_own(lazy: mx.array = lazy, memory: LayerMemory = memory) -> None:
                places, scores = memory.nearest(lazy, args.topk)
                mx.eval(mx.array(places), mx.array(scores))

            searches: dict[str, Callable[[], None]] = {"own": search_own}
            for name, indices in kinds.items():
                for threads in (1, args.threads):
                    searches[f"{name}/{threads}"] = _faiss(faiss, indices, lazy, args.topk, threads)
            for name, search in searches.items():
                taken = []
                for _ in range(args.steps):
                    began = time.perf_counter()
                    search()
                    taken.append(time.perf_counter() - began)
                result = {
                    "rows": rows,
                    "memories": size,
                    "search": name,
                    "median_ms": 1e3 * statistics.median(taken),
                    "best_ms": 1e3 * min(taken),
                    "ratio": None,
                }
                results.append(result)
                print(_row(result), flush=True)
    return results


def _faiss(
    faiss: Any, indices: list[Any], queries: mx.array, k: int, threads: int
) -> Callable[[], None]:
    def search() -> None:
        faiss.omp_set_num_threads(threads)
        for index, own in zip(indices, np.array(queries), strict=True):
            index.search(own, k)

    return search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--sizes", type=int, nargs="+", default=[0, 1000, 16000, 100000])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--topk", type=int, default=10)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2, help="of FAISS")
    parser.add_argument("--all-layers", action="store_true", help="whatever config.json says")
    parser.add_argument("--layer", action="store_true", help="time the search of one layer")
    parser.add_argument("--hnsw", action="store_true", help="with FAISS' graph index too")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--cpu-time", action="store_true")
    args = parser.parse_args()
    if args.cpu_time:
        Steps.clock = staticmethod(time.process_time)
    results = measure_layer(args) if args.layer else measure_steps(args)
    if args.output is not None:
        args.output.write_text(json.dumps({"device": str(mx.default_device()), "results": results}))


if __name__ == "__main__":
    main()
