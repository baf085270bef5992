"""exp and what is made of it: softmax, logsumexp, log_softmax.

MLX's exp takes 12 ns an element on x86: it is not vectorised there. Two other ways:

* `mx.power(e, x)`, which is glibc's powf: 4 ns, one operation, more exact than MLX's exp.
* 2^t = 2^k (s + A + B f) / (s + A - B f) with k = round(t), f = t - k, s = f^2: 1 ns as
  three fused kernels, 3 ns operation by operation. The fraction is the first step of
  tanh's continued fraction with A and B refitted to |f| <= 1/2: relative error 4.4e-7.
  k comes from adding 1.5 * 2^23, which leaves round(t) in the low bits of the sum;
  shifted to the exponent's place they are 2^k.

A kernel launch costs 3 us, so small arrays take the first way.
"""

from __future__ import annotations

import math
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_parallm.cpu.fusing import fused, is_fusing

LOG2E = math.log2(math.e)
# Sizes below which powf wins over the fused kernels, and over single operations.
_SMALL_FUSED, _SMALL_PLAIN = 4096, 16384
# 1.5 * 2^23, plus the exponent's bias so that the low bits are the biased exponent.
_ROUNDER = 12582912.0 + 127.0
_ZERO_BITS = 0x4B400000  # bits of the float 1.5 * 2^23: a biased exponent of 0
_A, _B = 25.038934906244382, 8.677779637866909
_FAR = 200.0  # e^-200 is 0 and e^200 is inf in float32
_FOLD, _FOLD_FROM = 32, 256
_LARGE = 1 << 20  # beyond the cache, the product with ones is slower than folding

# Evaluated arrays, since lazy ones belong to the thread that made them.
_VECTOR, _BITS, _SCALAR = mx.array([1.0] * 8), mx.array([1] * 8), mx.array(1.0)
_POSITIVE, _NEGATIVE, _UNSCALED = mx.array(LOG2E), mx.array(-LOG2E), mx.array(1.0)


@fused(_VECTOR, _SCALAR)
def _round(x: mx.array, factor: mx.array) -> tuple[mx.array, mx.array]:
    t = x * factor
    z = t + _ROUNDER
    return z, t - (z - _ROUNDER)


@fused(_BITS)
def _exponent(bits: mx.array) -> mx.array:
    # Clamped as integers: MLX's float maximum tests for NaN and takes three times as long.
    biased = mx.minimum(mx.maximum(bits, _ZERO_BITS), _ZERO_BITS + 255)
    return mx.left_shift(biased, 23)


@fused(_VECTOR, _VECTOR)
def _combine(f: mx.array, power: mx.array) -> mx.array:
    a, b = mx.square(f) + _A, f * _B
    return power * ((a + b) / (a - b))


def _exp2_of_product(x: mx.array, factor: mx.array) -> mx.array:
    """2^(x factor) where the product is at most 1e9 in size; x dense."""
    z, f = _round(x, factor)
    power = _exponent(z.view(mx.int32)).view(mx.float32)
    result: mx.array = _combine(f, power)
    return result


def is_small(x: mx.array) -> bool:
    """Whether `mx.power` is the faster way for this array."""
    return x.size < (_SMALL_FUSED if is_fusing() else _SMALL_PLAIN)


def exp2(t: mx.array) -> mx.array:
    """2^t of a float32 array: relative error under 5e-7 plus 6e-8 |t|.

    Args:
        t: |t| <= 1e9, and the result of an operation, so that it is dense.
    """
    return mx.power(2.0, t) if is_small(t) else _exp2_of_product(t, _UNSCALED)


def exp_negated(x: mx.array) -> mx.array:
    """e^-x of a dense float32 array, |x| <= 1e8."""
    return mx.power(math.e, -x) if is_small(x) else _exp2_of_product(x, _NEGATIVE)


def exp(x: mx.array) -> mx.array:
    """e^x of any array: relative error under 1e-6 for |x| < 10, under 5e-6 anywhere."""
    if x.dtype != mx.float32:
        return mx.exp(x)
    if is_small(x):
        return mx.power(math.e, x)
    return _exp2_of_product(mx.contiguous(mx.clip(x, -_FAR, _FAR)), _POSITIVE)


def _exp_of_nonpositive(x: mx.array) -> mx.array:
    if is_small(x):
        return mx.power(math.e, x)
    return _exp2_of_product(mx.maximum(x, -_FAR), _POSITIVE)


def row_max(x: mx.array) -> mx.array:
    """max over the last axis, kept: (..., 1)."""
    if _foldable(x):
        x = _fold(x).max(axis=-2)
    return x.max(axis=-1, keepdims=True)


def row_sum(x: mx.array) -> mx.array:
    """Sum over the last axis, kept: (..., 1). A product with ones is the fastest."""
    if _foldable(x) and x.size > _LARGE:
        x = _fold(x).sum(axis=-2)
    columns = x.shape[-1]
    return (x.reshape(-1, columns) @ _ones(columns)).reshape(*x.shape[:-1], 1)


def _foldable(x: mx.array) -> bool:
    return x.shape[-1] >= _FOLD_FROM and x.shape[-1] % _FOLD == 0


def _fold(x: mx.array) -> mx.array:
    # MLX reduces one row element by element, but rows side by side with vectors.
    return x.reshape(*x.shape[:-1], -1, _FOLD)


@lru_cache(maxsize=16)
def _ones(rows: int) -> mx.array:
    return mx.array(np.ones((rows, 1), dtype=np.float32))


def _usable(x: mx.array, axis: int) -> bool:
    return x.dtype == mx.float32 and x.size > 0 and axis in (-1, x.ndim - 1)


def softmax(x: mx.array, axis: int = -1) -> mx.array:
    """mx.softmax; entries of -inf get 0."""
    if not _usable(x, axis):
        return mx.softmax(x, axis=axis)
    p = _exp_of_nonpositive(x - row_max(x))
    return p / row_sum(p)


def logsumexp(x: mx.array, axis: int = -1, keepdims: bool = False) -> mx.array:
    """mx.logsumexp, for rows with at least one finite entry."""
    if not _usable(x, axis):
        return mx.logsumexp(x, axis=axis, keepdims=keepdims)
    top = row_max(x)
    total = top + mx.log(row_sum(_exp_of_nonpositive(x - top)))
    return total if keepdims else total.squeeze(-1)


def log_softmax(x: mx.array, axis: int = -1) -> mx.array:
    """log(softmax(x)) without computing the softmax."""
    return x - logsumexp(x, axis=axis, keepdims=True)
