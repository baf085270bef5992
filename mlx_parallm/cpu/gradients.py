"""Attention, activation and logarithms that can be differentiated, for training on CPUs.

The functions that serving uses move bits about where they compute exponentials, so that their
gradients would be wrong. Here the same exponential has a gradient of its own, and the rest are
operations that have one.
"""

from __future__ import annotations

import math
from typing import cast

import mlx.core as mx

from mlx_parallm.cpu import exponential
from mlx_parallm.cpu.attention import add_mask, causal_mask
from mlx_parallm.cpu.exponential import LOG2E

_LN2 = math.log(2.0)
_MOST = 1e8  # of an exponent; see exponential.exp2


def exp2(t: mx.array) -> mx.array:
    """2^t of a float32 array, |t| <= 1e9."""
    return cast(mx.array, _exp2(t))


@mx.custom_function
def _exp2(t: mx.array) -> mx.array:
    return exponential.exp2(mx.contiguous(t))


@_exp2.vjp
def _exp2_vjp(t: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * output * _LN2


def logsumexp(x: mx.array) -> mx.array:
    """(..., 1) log of the sum of exponentials over the last axis of a float32 array."""
    top = mx.stop_gradient(exponential.row_max(x))
    powers = exp2(mx.maximum((x - top) * LOG2E, -_MOST))
    return top + mx.log(exponential.row_sum(powers))


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, as mlx-lm's function of this name."""
    if gate.dtype != mx.float32 or up.dtype != mx.float32:
        return gate * mx.sigmoid(gate) * up
    return gate * up / (1.0 + exp2(mx.clip(gate * -LOG2E, -120.0, 120.0)))


def precise_swiglu(h: mx.array, gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up in float32, as h's type."""
    return swiglu(gate.astype(mx.float32), up.astype(mx.float32)).astype(h.dtype)


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    """softmax(scale Q K^T + mask) V; shapes as in `cpu.attention.attention`."""
    floats = {a.dtype for a in (queries, keys, values)}
    if sinks is not None or floats != {mx.float32}:
        return mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=scale, mask=mask, sinks=sinks
        )
    batch, heads, width, dim = queries.shape
    kv_heads = keys.shape[1]
    rows = (heads // kv_heads) * width
    grouped = (queries * (scale * LOG2E)).reshape(batch, kv_heads, rows, dim)
    scores = grouped @ keys.swapaxes(-1, -2)
    if isinstance(mask, str):
        mask = causal_mask(width, keys.shape[2])
    if mask is not None:
        scores = add_mask(scores, mask, width)
    weights = exp2(scores - mx.stop_gradient(exponential.row_max(scores)))
    total = exponential.row_sum(weights)
    return ((weights @ values) / total).reshape(batch, heads, width, values.shape[-1])
