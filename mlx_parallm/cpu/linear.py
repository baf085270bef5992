"""The memory layout of weights that is fast for OpenBLAS.

A product with few rows reads the weights (out, in) along `in`. Where `in` is a multiple
of 1024 floats, neighbouring rows fall into the same cache sets, and the product takes 1.3
to 1.5 times as long (1.2 at 32 rows) as with the transpose stored densely. For other
widths the layout as loaded is equal or better, whatever the size of `out`.

Only the layout changes: the weight is a transposed view of the dense transpose, so shape,
values, parameters(), update() and adapters are as before, and nothing is held twice.
Our own products of few rows (products.py) read weights as they lie, at full speed for every
width, so that nothing is changed for them.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx import nn

from mlx_parallm.cpu import blas

_BAD_STRIDE = 1024
_LARGE = 1 << 18  # smaller weights stay in the cache


def optimize_linears(model: Any) -> int:
    """Relayout the weights that gain from it; returns how many."""
    if blas.info().own_products:
        return 0
    changed = 0
    tied = bool(getattr(getattr(model, "args", None), "tie_word_embeddings", False))
    for module in model.modules():
        # A tied embedding is a linear layer at the output, where nearly all of its cost is.
        is_linear = type(module) is nn.Linear or (tied and type(module) is nn.Embedding)
        if is_linear and _gains(module.weight):
            module.weight = transposed_layout(module.weight)
            # Not through nn.Module, which takes only parameters and modules for its own.
            object.__setattr__(module, "stored_transposed", True)
            changed += 1
    return changed


def is_stored_transposed(module: Any) -> bool:
    """Whether other weights for this module should be laid out like its own."""
    return bool(getattr(module, "stored_transposed", False))


def transposed_layout(weight: mx.array) -> mx.array:
    """The same (out, in) matrix, stored column after column."""
    dense = mx.contiguous(weight.T)
    mx.eval(dense)
    view = dense.T
    mx.eval(view)
    return view


def _gains(weight: mx.array) -> bool:
    return (
        weight.dtype == mx.float32 and weight.shape[1] % _BAD_STRIDE == 0 and weight.size >= _LARGE
    )
