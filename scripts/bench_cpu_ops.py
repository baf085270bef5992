#!/usr/bin/env python3
"""Measures the CPU replacements against the operations they stand for, taking turns.

    scripts/bench_cpu_ops.py                  # operations and whole steps of the 27m shape
    scripts/bench_cpu_ops.py --shape 125m --only steps
    scripts/bench_cpu_ops.py --cpu-time       # on a busy machine
    scripts/bench_cpu_ops.py --only products  # by our own cblas_sgemm and by the BLAS

With --cpu-time BLAS has one thread and times are CPU seconds of the process, which other
programs hardly change; shares of matrix products are then larger than in service. The
allocator's thresholds, once raised, hold for both sides.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)
import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import argparse
import time
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from bench_models import SHAPES, Shape
from benchlib.products import compare
from benchlib.table import format_table, percentile
from mlx import nn
from mlx_lm.models import activations as mlx_lm_activations
from mlx_lm.models import llama

from mlx_parallm.cpu import activations, allocator, blas, fusing
from mlx_parallm.cpu.attention import attention
from mlx_parallm.cpu.linear import transposed_layout
from mlx_parallm.cpu.norm import RowRMSNorm
from mlx_parallm.cpu.rope import use_tables
from mlx_parallm.models.adapting import replacements

CONTEXT = 128
WORK = {"1": (1, 1), "8": (8, 1), "32": (32, 1), "8x128": (8, 128)}  # rows, tokens a row
_SHAPES = SHAPES | {"smollm2-135m": Shape(576, 1536, 30, 9, 3, 49152, tied=True)}
_CALLS = 8  # of an operation in one evaluation, as in the layers of a step

Function = Callable[[], mx.array]
Pair = tuple[Function, Function]


def main() -> None:
    """Print the tables asked for."""
    args = _arguments()
    clock = time.process_time if args.cpu_time else time.perf_counter
    if args.cpu_time:
        blas.set_num_threads(1)
    shape = _SHAPES[args.shape]
    print(f"{args.shape}, context {CONTEXT}, BLAS {blas.info()}\n")
    if args.only == "products":
        if not blas.info().own_products:
            raise SystemExit("our own products were not compiled here")
        print(format_table(compare(_weights(shape), args.rounds)))
        return
    if args.only != "operations":
        print(format_table(_steps(shape, args.rounds, clock)) + "\n", flush=True)
    if args.only != "steps":
        allocator.keep_freed_memory()
        fusing.compile_kernels()
        print(format_table(_operations(shape, args.rounds, clock)))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=sorted(_SHAPES), default="27m")
    parser.add_argument("--only", choices=["steps", "operations", "products"])
    parser.add_argument("--rounds", type=int, default=15, help="how often sides take turns")
    parser.add_argument("--cpu-time", action="store_true")
    return parser.parse_args()


def _take_turns(
    sides: tuple[Function, ...], rounds: int, clock: Callable[[], float]
) -> list[float]:
    """Milliseconds of each side: the first quartile, since noise only ever adds."""
    times: list[list[float]] = [[] for _ in sides]
    for side in sides:
        side()
    for _ in range(rounds):
        for side, taken in zip(sides, times, strict=True):
            started = clock()
            side()
            taken.append((clock() - started) * 1e3)
    return [percentile(taken, 0.25) or 0.0 for taken in times]


# products


def _weights(shape: Shape) -> list[tuple[int, int]]:
    """(outputs, inputs) of all matrices of a step."""
    kv = shape.kv_heads * shape.head_dim
    attention = [(shape.width, shape.width), (kv, shape.width), (kv, shape.width)]
    inner = [(shape.inner, shape.width), (shape.inner, shape.width), (shape.width, shape.inner)]
    layer = [*attention, (shape.width, shape.width), *inner]
    return [*layer * shape.layers, (shape.vocabulary, shape.width)]


# whole steps


class _FixedCache:
    """Room for K and V of which the last columns are overwritten again and again."""

    offset: mx.array

    def __init__(self, rows: int, columns: int, shape: Shape) -> None:
        size = (rows, shape.kv_heads, 2 * columns, shape.head_dim)
        self.keys, self.values, self.columns = mx.zeros(size), mx.zeros(size), columns

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write T columns, return all."""
        start = self.columns - keys.shape[2]
        self.keys[:, :, start : self.columns] = keys
        self.values[:, :, start : self.columns] = values
        return self.keys[:, :, : self.columns], self.values[:, :, : self.columns]

    def make_mask(self, width: int, **_: Any) -> str | None:
        """mlx-lm's mask protocol."""
        return None if width == 1 else "causal"


def _steps(shape: Shape, rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    model = _model(shape)
    rows = []
    for name, (batch, width) in WORK.items():
        run = _step(model, shape, batch, width)

        def before(run: Function = run) -> mx.array:
            return run()

        replacements.uninstall(model)
        expected = run()
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(3):  # installing is too slow to do it every time
            for side, switch in zip(
                times, (replacements.uninstall, replacements.install), strict=True
            ):
                switch(model)
                side.extend(_take_turns((before,), rounds, clock))
        error = mx.abs(run() - expected).max().item()
        one, other = min(times[0]), min(times[1])
        rows.append(
            {
                "step": name,
                "before, ms": round(one, 2),
                "after, ms": round(other, 2),
                "ratio": round(one / other, 2),
                "largest difference of logits": f"{error:.0e}",
            }
        )
    return rows


def _model(shape: Shape) -> Any:
    config = {
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": shape.tied,
    }
    mx.random.seed(0)
    model = llama.Model(llama.ModelArgs.from_dict(config))
    mx.eval(model.parameters())
    return model


def _step(model: Any, shape: Shape, batch: int, width: int) -> Function:
    columns = CONTEXT if width == 1 else CONTEXT + width
    caches = [_FixedCache(batch, columns, shape) for _ in model.layers]
    tokens = mx.array(np.random.default_rng(0).integers(0, shape.vocabulary, (batch, width)))

    def run() -> mx.array:
        offset = mx.array(np.full(batch, columns - width, dtype=np.int32))
        for cache in caches:
            cache.offset = offset
        logits: mx.array = model(tokens, cache=caches)[:, -1]
        mx.eval(logits, [(cache.keys, cache.values) for cache in caches])
        return logits

    return run


# single operations


def _operations(shape: Shape, rounds: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for name, (batch, width) in WORK.items():
        for operation, pair in _pairs(shape, batch, width).items():
            sides = tuple(_repeated(side) for side in pair)
            before, after = (ms * 1e3 / _CALLS for ms in _take_turns(sides, rounds, clock))
            row = rows.setdefault(operation, {"operation": operation})
            row[f"{name}: us"] = f"{before:.0f} -> {after:.0f}"
            row[f"{name}: ratio"] = f"{before / after:.2f}"
    return list(rows.values())


def _repeated(side: Function) -> Function:
    def run() -> mx.array:
        results = [side() for _ in range(_CALLS)]
        mx.eval(results)
        return results[0]

    return run


def _pairs(shape: Shape, batch: int, width: int) -> dict[str, Pair]:
    rng = np.random.default_rng(0)

    def draw(*size: int) -> mx.array:
        return mx.array(rng.standard_normal(size).astype(np.float32))

    x, logits = draw(batch, width, shape.width), draw(batch, shape.vocabulary)
    gate, up = draw(batch, width, shape.inner), draw(batch, width, shape.inner)
    plain_norm, norm = nn.RMSNorm(shape.width), RowRMSNorm(shape.width)
    weight = draw(512, 2048)  # no weight of the small shapes has 1024 k inputs
    moved, wide = transposed_layout(weight), draw(batch * width, 2048)
    mx.eval(x, logits, gate, up, wide, weight)
    return {
        "swiglu": (
            lambda: mlx_lm_activations.swiglu(gate, up),
            lambda: activations.swiglu(gate, up),
        ),
        "gelu_approx": (lambda: nn.gelu_approx(gate), lambda: activations.gelu_approx(gate)),
        "attention": _attention_pair(shape, batch, width),
        "rotary embedding": _rope_pair(shape, draw(batch, width, shape.heads, shape.head_dim)),
        "RMS norm": (lambda: plain_norm(x), lambda: norm(x)),
        "exp of logits": (lambda: mx.exp(logits), lambda: replacements.exp(logits)),
        "logsumexp of logits": (
            lambda: mx.logsumexp(logits, axis=-1),
            lambda: replacements.logsumexp(logits),
        ),
        "linear, 2048 to 512": (lambda: wide @ weight.T, lambda: wide @ moved.T),
    }


def _attention_pair(shape: Shape, batch: int, width: int) -> Pair:
    columns = CONTEXT if width == 1 else CONTEXT + width
    random = mx.random.normal
    q = random((batch, shape.heads, width, shape.head_dim))
    k, v = (
        random((batch, shape.kv_heads, 2 * columns, shape.head_dim))[:, :, :columns]
        for _ in range(2)
    )
    lengths = np.random.default_rng(0).integers(columns // 2, columns - width + 1, batch)
    visible = np.arange(columns) <= (lengths[:, None] + np.arange(width))[..., None]
    mask = mx.array(visible[:, None])
    mx.eval(q, k, v, mask)
    scale = shape.head_dim**-0.5
    return (
        lambda: mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask),
        lambda: attention(q, k, v, scale=scale, mask=mask),
    )


def _rope_pair(shape: Shape, x: mx.array) -> Pair:
    plain: Any = nn.RoPE(shape.head_dim)
    tabled: Any = nn.RoPE(shape.head_dim)
    model: Any = nn.Module()
    model.rope = tabled
    use_tables(model)
    offset = mx.array(np.arange(CONTEXT, CONTEXT + len(x), dtype=np.int32))
    mx.eval(x, offset)
    return (
        lambda: plain(x.swapaxes(1, 2), offset=offset),
        lambda: tabled(x.swapaxes(1, 2), offset=offset),
    )


if __name__ == "__main__":
    main()
