"""Scenarios of the KV cache: rows that join and leave, and the memory it takes."""

from __future__ import annotations

import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import random
import statistics
import time
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import BatchKVCache

from benchlib.scenarios import Bench, Rows, judge, ms, scenario, warm_cache
from benchlib.sides import our_engine
from benchlib.work import Timing, Work
from mlx_parallm.cache.batch import BatchedCache, BatchedKVCache


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
        row: dict[str, Any] = {"side": name, "join ms": ms(joining), "leave ms": ms(leaving)}
        row |= {"together ms": ms(joining + leaving), "extra MB": round(extra / 1e6, 1)}
        rows.append(row)
    rows[0] |= judge(rows[0]["together ms"], 10, at_least=False)
    return rows


Moves = tuple[float, float, float]
"""Seconds to join, seconds to leave, and bytes of memory that both took for a while."""


def _layer_shapes(model: Any) -> list[tuple[int, int]]:
    """(kv_heads, head_dim) per layer."""
    leaves = [leaf for leaf in warm_cache(model).leaves if isinstance(leaf, BatchedKVCache)]
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
        rows.append(row | judge(found, 1.2 if name == "equal lengths" else 1.35, at_least=False))
    return rows


def _memory_shares(bench: Bench, work: list[Work]) -> list[float]:
    """Allocated over needed bytes, at every step at which at least half of the rows are held."""
    shares: list[float] = []
    with our_engine(bench.folder) as ours:

        def look(_: Timing) -> None:
            cache = ours.engine.runner.cache  # we are on the engine's thread here
            held = sum(row.length for row in cache.rows)
            if len(cache.rows) >= len(work) // 2 and held:
                shares.append(cache.nbytes / (bench.kv_bytes_per_token * held))

        ours.run(work, on_step=look)
    return shares
