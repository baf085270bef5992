"""(x A) B with the A and B of each lane, by the way that costs least.

One product for all where one adapter is alone, one for each adapter where their tokens fit
beside each other, one for each lane otherwise.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_parallm.models.lora.routing import Grid, Lanes


def low_rank(x: mx.array, a: mx.array, b: mx.array, lanes: Lanes) -> mx.array:
    """(N, T, out) of x, (N, T, in).

    Args:
        a: (slots + 1, in, r); b: (slots + 1, r, out).
    """
    x = x.astype(a.dtype)
    if lanes.only is not None:
        return (x @ a[lanes.only]) @ b[lanes.only]
    grid = lanes.grid if x.shape[1] == 1 else None
    if grid is not None:
        return _in_grid(x[:, 0], a, b, grid)[:, None]
    index = lanes.index
    return mx.gather_mm(mx.gather_mm(x, a, rhs_indices=index), b, rhs_indices=index)


def _in_grid(x: mx.array, a: mx.array, b: mx.array, grid: Grid) -> mx.array:
    """(N, out) of x, (N, in)."""
    z = mx.gather_mm(x[grid.tokens], a, rhs_indices=grid.slots)
    z = mx.flatten(mx.gather_mm(z, b, rhs_indices=grid.slots), 0, 1)
    if not grid.all_adapted:
        z = mx.concatenate([z, mx.zeros((1, z.shape[1]), z.dtype)])
    return z[grid.back]


def low_rank_of_tokens(ids: mx.array, a: mx.array, b: mx.array, lanes: Lanes) -> mx.array:
    """(N, T, dim) of an embedding's rows, ids (N, T).

    Args:
        a: (slots + 1, vocabulary, r); b: (slots + 1, r, dim).
    """
    rows = a[lanes.index[:, None], ids]
    return mx.gather_mm(rows, b, rhs_indices=lanes.index)


def low_rank_of_experts(
    x: mx.array, experts: mx.array, a: mx.array, b: mx.array, slots: mx.array
) -> mx.array:
    """(..., 1, out) of x, (..., 1, in), as SwitchLinear takes it.

    Args:
        experts, slots: (...) of each product.
        a: (slots + 1, E, in, r); b: (slots + 1, E, r, out).
    """
    index = slots * a.shape[1] + experts
    z = mx.gather_mm(x.astype(a.dtype), mx.flatten(a, 0, 1), rhs_indices=index)
    return mx.gather_mm(z, mx.flatten(b, 0, 1), rhs_indices=index)
