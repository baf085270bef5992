"""Attention and activation for training on CPUs.

MLX computes exp one element at a time there (12 to 17 ns each), which would be most of a
training step. The exp below is a handful of vectorised operations (2 to 3 ns, relative error
below 2e-4). The model class stays mlx-lm's: `use_fast_ops` only replaces the two functions in
its module.
"""

from __future__ import annotations

import ctypes
import math
import sys
from typing import Any, cast

import mlx.core as mx
from mlx_lm.models import llama

# Adding 1.5 * 2^23 rounds to an integer that then lies in the low bits of the float;
# 127 more is the exponent's bias.
_ROUND = 12582912.0 + 127.0
# Minimax polynomial of 2^f on [-0.5, 0.5].
_C0, _C1, _C2, _C3 = 0.99992807, 0.69326099, 0.24261112, 0.05517166


def fast_exp(x: mx.array) -> mx.array:
    """exp(x) for float32 x in [-79, 79]; outside it is cut."""
    return cast(mx.array, _exp(x))


@mx.custom_function
def _exp(x: mx.array) -> mx.array:
    scaled = mx.minimum(mx.maximum(x * (1 / math.log(2)), -115.0), 115.0)
    rounded = scaled + _ROUND
    f = scaled - (rounded - _ROUND)
    power = mx.left_shift(mx.view(rounded, mx.int32), 23)
    return (((f * _C3 + _C2) * f + _C1) * f + _C0) * mx.view(power, mx.float32)


@_exp.vjp
def _exp_vjp(x: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * output


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    cache: Any,
    scale: float,
    mask: mx.array,
    sinks: Any = None,
) -> mx.array:
    """Softmax attention as two matmuls, with the query heads of a group side by side.

    queries (B, H, T, D), keys and values (B, KV, T, D), mask (B, 1, T, T) of 0 and 1. The
    denominator is one more column of the values, so that no pass over the scores sums them.
    """
    batch, heads, length, width = queries.shape
    kv_heads = keys.shape[1]
    grouped = (queries * scale).reshape(batch, kv_heads, -1, width)
    scores = grouped @ keys.swapaxes(-1, -2)
    scores = scores.reshape(batch, heads, length, -1)
    # The largest score of the whole row, hidden ones too: an upper bound does as well.
    top = mx.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = (fast_exp(scores - top) * mask).reshape(batch, kv_heads, -1, length)
    ones = mx.ones((*values.shape[:-1], 1), dtype=values.dtype)
    both = weights @ mx.concatenate([values, ones], axis=-1)
    output = both[..., :width] / (both[..., width:] + 1e-37)
    return output.reshape(batch, heads, length, width)


def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    return gate * x / (1.0 + fast_exp(-gate))


def cross_entropy(logits: mx.array, targets: mx.array) -> mx.array:
    """Loss of each row of logits (N, V) for targets (N,)."""
    top = mx.stop_gradient(logits.max(axis=-1, keepdims=True))
    total = mx.log(fast_exp(logits - top).sum(axis=-1)) + top[:, 0]
    return total - mx.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks: a step frees and takes the same large arrays again, and
    fresh pages from the system cost up to half as much time as the computing."""
    libc = ctypes.CDLL(None)
    if sys.platform == "linux" and hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def use_fast_ops() -> None:
    """Let mlx-lm's Llama use the functions above, in this process."""
    keep_freed_memory()
    vars(llama).update(scaled_dot_product_attention=attention, swiglu=swiglu)
