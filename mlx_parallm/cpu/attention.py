"""Attention with grouped queries, for CPUs.

mx.fast's attention spends most of its time in softmax, and for long contexts in
products of two query rows with a long K. Here the exponentials come from
`exponential`, and the scores of few queries are computed as K Q^T, which MLX's BLAS
runs up to three times faster than Q K^T; they are small enough to be transposed then.
K and V may be views of a longer buffer: MLX copies nothing as long as the last two
axes are dense.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_parallm.cpu.exponential import LOG2E, exp2, row_max, row_sum

# Stands for -inf: far below any score, and exp2 still returns an exact 0.
_NEVER = -1e9
# Scores up to which mx.fast, with fewer operations, is the faster one.
_FEW_SCORES = 4096
# Query rows a head of K up to which K Q^T is the faster product.
_FEW_ROWS = 16


def attention(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    """softmax(scale Q K^T + mask) V, as mx.fast.scaled_dot_product_attention.

    Args:
        queries: (B, heads, T, D).
        keys, values: (B, kv_heads, S, D) and (B, kv_heads, S, Dv).
        scale: factor of the scores.
        mask: None, "causal" (the last query sees all S), or an array that broadcasts to
            (B, heads, T, S): bool with true for visible, or added to the scores.
        sinks: (heads,) scores of a column that has no value.

    Returns:
        (B, heads, T, Dv). A query that sees nothing gets finite numbers.
    """
    batch, heads, width, dim = queries.shape
    few = batch * heads * width * keys.shape[2] <= _FEW_SCORES
    if few or not _is_float32(queries, keys, values, mask, sinks):
        return mx.fast.scaled_dot_product_attention(
            queries, keys, values, scale=scale, mask=mask, sinks=sinks
        )
    kv_heads = keys.shape[1]
    rows = (heads // kv_heads) * width
    # Scores are in units of log(2): that saves a product with each of them.
    scores = _scores((queries * (scale * LOG2E)).reshape(batch, kv_heads, rows, dim), keys)
    if isinstance(mask, str):
        mask = causal_mask(width, keys.shape[2])
    if mask is not None:
        scores = add_mask(scores, mask, width)
    top = row_max(scores)
    if sinks is not None:
        sinks = _sink_rows(sinks * LOG2E, kv_heads, width)
        top = mx.maximum(top, sinks)
    weights = exp2(scores - top)
    total = row_sum(weights)
    if sinks is not None:
        total = total + mx.power(2.0, sinks - top)
    return ((weights @ values) / total).reshape(batch, heads, width, values.shape[-1])


def _is_float32(*arrays: mx.array | str | None) -> bool:
    types = {array.dtype for array in arrays if isinstance(array, mx.array)}
    return types <= {mx.float32, mx.bool_}


def _scores(queries: mx.array, keys: mx.array) -> mx.array:
    """(B, kv_heads, rows, S) of queries (B, kv_heads, rows, D)."""
    if queries.shape[2] > _FEW_ROWS:
        return queries @ keys.swapaxes(-1, -2)
    return mx.contiguous((keys @ queries.swapaxes(-1, -2)).swapaxes(-1, -2))


def add_mask(scores: mx.array, mask: mx.array, width: int) -> mx.array:
    """Scores (B, kv_heads, rows, S) in units of log(2), with a mask as `attention` takes it."""
    batch, kv_heads, rows, columns = scores.shape
    group = rows // width
    if mask.dtype == mx.bool_:
        bias = mask.astype(mx.float32) * -_NEVER + _NEVER
    else:
        bias = mx.maximum(mask * LOG2E, _NEVER)
    while bias.ndim < 4:
        bias = bias[None]
    # The axis of heads becomes (kv_heads, group).
    bias = bias[:, :, None] if bias.shape[1] == 1 else mx.unflatten(bias, 1, (kv_heads, group))
    grouped = scores.reshape(batch, kv_heads, group, width, columns) + bias
    return grouped.reshape(scores.shape)


def _sink_rows(sinks: mx.array, kv_heads: int, width: int) -> mx.array:
    """(1, kv_heads, rows, 1) of (heads,)."""
    group = sinks.size // kv_heads
    grouped = sinks.reshape(1, kv_heads, group, 1)
    return mx.broadcast_to(grouped, (1, kv_heads, group, width)).reshape(1, kv_heads, -1, 1)


@lru_cache(maxsize=8)
def causal_mask(width: int, columns: int) -> mx.array:
    """(T, S) float32 to add; the same for all layers of a forward."""
    visible = np.arange(columns)[None] <= np.arange(columns - width, columns)[:, None]
    return mx.array(np.where(visible, 0.0, _NEVER / LOG2E).astype(np.float32))
