"""Packed forwards: rows with different numbers of new tokens, and nothing computed for padding.

A forward of a padded grid, (B, T), computes the padding too. Packed, the model is given
every real token as a sequence of its own, (N, 1), with its own position; only attention
goes through the grid, since the tokens of a row look at that row's K and V. All else in
a transformer is by token, so nothing but the layout changes.
"""

from __future__ import annotations

import logging
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.cache.kv_cache import BatchedKVCache

logger = logging.getLogger(__name__)

_COUNTS = (2, 3, 1)  # new tokens of the rows that `can_pack` tries
_TOLERANCE = 1e-3  # of the largest logit
_HALF_TOLERANCE = 3e-2  # the same in half precision


def can_pack(model: Any) -> bool:
    """Whether this model's packed forward gives what its padded one does, by trying both.

    It does where every layer is by token but for an attention that goes through
    attention.py, which is so for most of mlx-lm's architectures.
    """
    if not all(type(leaf) is BatchedKVCache for leaf in BatchedCache(model).leaves):
        return False
    try:
        padded, packed = (_second_forward(model, packed) for packed in (False, True))
    except Exception as error:  # noqa: BLE001 - whatever does not fit runs padded
        logger.debug("forwards are padded: %s", error)
        return False
    tolerance = _TOLERANCE if padded.dtype == mx.float32 else _HALF_TOLERANCE
    padded, packed = padded.astype(mx.float32), packed.astype(mx.float32)
    if padded.shape != packed.shape:
        return False
    apart = mx.abs(padded - packed).max() / mx.maximum(mx.abs(padded).max(), 1e-6)
    return bool((apart < tolerance).item())


def token_logits(model: Any, cache: BatchedCache, grid: mx.array) -> mx.array:
    """(N, V) logits of the real tokens, row by row, of the forward that the cache has begun.

    Args:
        grid: (B, T) token ids, padded.
    """
    span = cache.span
    if span.packed:
        tokens = mx.flatten(grid)[span.pack_index()]
        packed: mx.array = model(tokens[:, None], cache=cache.layers)[:, 0]
        return packed
    logits = mx.flatten(model(grid, cache=cache.layers), 0, 1)
    return logits[span.pack_index()] if span.ragged else logits


def _second_forward(model: Any, packed: bool) -> mx.array:
    """(N, V) logits of the real tokens, behind a first token in each row."""
    cache = BatchedCache(model)
    for _ in _COUNTS:
        cache.join()
    size, width = len(_COUNTS), max(_COUNTS)
    first = [[7 + row] for row in range(size)]
    cache.begin(0, size, 1, [1] * size)
    mx.eval(model(mx.array(first), cache=cache.layers), cache.arrays)
    cache.commit()
    inputs = np.arange(11, 11 + size * width, dtype=np.int32).reshape(size, width)
    cache.begin(0, size, width, _COUNTS, packed=packed)
    logits = token_logits(model, cache, mx.array(inputs))
    mx.eval(logits)
    return logits
