"""Attention of packed forwards: by token outside, by row inside."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from mlx_parallm.cache.span import Span


def attend_packed(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    *,
    scale: float,
    mask: mx.array | str | None,
    sinks: mx.array | None,
    plain: Callable[..., mx.array],
    span: Span,
    memories: Callable[..., mx.array] | None,
) -> mx.array:
    """Attention of a packed forward (packing.py), which goes through the padded grid.

    Args:
        queries: (N, heads, 1, dim); keys, values: (B, kv_heads, columns, dim).
        mask: of the grid, (B, 1, T, columns).
        plain: attention(queries) of queries in the grid.
        memories: the same with memories, where a row has any.

    Returns:
        (N, heads, 1, dim).
    """
    tokens, heads, _, dim = queries.shape
    grid = queries.reshape(tokens, heads, dim)[span.grid_index()]
    grid = grid.reshape(span.size, span.width, heads, dim).swapaxes(1, 2)
    if memories is None:
        output = plain(grid)
    else:
        output = memories(
            grid, keys, values, scale=scale, mask=mask, sinks=sinks, plain=lambda: plain(grid)
        )
    by_token = mx.flatten(output.swapaxes(1, 2), 0, 1)
    return mx.expand_dims(by_token[span.pack_index()], 2)
