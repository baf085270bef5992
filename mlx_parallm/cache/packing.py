"""Packed forwards: rows with different numbers of new tokens, and nothing computed for padding.

A forward of a padded grid, (B, T), computes the padding too. Packed, the model is given
every real token as a sequence of its own, (N, 1), with its own position; see
packed_layer.py. So decoding rows, their guesses and chunks of prompts share one forward,
and the weights are read once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.cache.kv_cache import BatchedKVCache
from mlx_parallm.cache.row_cache import RowCache
from mlx_parallm.models.body import BodyTap

logger = logging.getLogger(__name__)

_COUNTS = (2, 3, 1, 5)  # new tokens of the rows that `can_pack` tries
_HELD = 2  # tokens before them
_TOLERANCE = 1e-3  # of the largest logit
_HALF_TOLERANCE = 3e-2  # the same in half precision


def can_pack(model: Any, body: BodyTap, agree: Callable[[int], int] = lambda value: value) -> bool:
    """Whether this model's packed forward gives the results of its padded one; tries both.

    It does where every layer but attention treats tokens independently, and attention goes
    through models/attention.py: so for most of mlx-lm's architectures.

    Args:
        body: is told not to choose hidden states where the model's head needs all of them.
        agree: the smallest value of all ranks that compute the model.
    """
    if not all(type(layer) is BatchedKVCache for layer in BatchedCache(model).layers):
        return False
    try:
        padded = _padded(model)
        for selects in (True, False) if body.available else (False,):
            body.selects = selects
            if agree(_are_equal(padded, _packed(model, body))):
                return True
    except Exception as error:  # noqa: BLE001 - whatever does not fit runs padded
        logger.debug("forwards are padded: %s", error)
        body.select(None)
    return False


def packed_logits(
    model: Any, cache: RowCache, body: BodyTap, tokens: mx.array, wanted: np.ndarray | None
) -> mx.array:
    """(M, V) logits behind the wanted tokens of the forward that the cache has begun.

    Args:
        tokens: (padded,) token ids.
        wanted: (M,) their places; None is all.
    """
    if wanted is not None and body.selects:
        body.select(wanted)
    try:
        with body.routing.over(cache.span.adapters):
            logits: mx.array = model(tokens[:, None], cache=cache.layers)[:, 0]
    finally:
        body.select(None)
    if wanted is not None and not body.selects:
        return logits[mx.array(wanted.astype(np.int32))]
    return logits


def _are_equal(padded: mx.array, packed: mx.array) -> bool:
    tolerance = _TOLERANCE if padded.dtype == mx.float32 else _HALF_TOLERANCE
    padded, packed = padded.astype(mx.float32), packed.astype(mx.float32)
    if padded.shape != packed.shape:
        return False
    apart = mx.abs(padded - packed).max() / mx.maximum(mx.abs(padded).max(), 1e-6)
    return bool((apart < tolerance).item())


def _tokens(row: int, start: int, stop: int) -> list[int]:
    return [7 + row * 11 + place for place in range(start, stop)]


def _padded(model: Any) -> mx.array:
    """(sum of _COUNTS, V) logits of each row alone, behind its first tokens."""
    found = []
    for row, count in enumerate(_COUNTS):
        cache = BatchedCache(model)
        cache.join()
        cache.begin(0, 1, _HELD, [_HELD])
        mx.eval(model(mx.array([_tokens(row, 0, _HELD)]), cache=cache.layers), cache.arrays)
        cache.commit()
        cache.begin(0, 1, count, [count])
        found.append(model(mx.array([_tokens(row, _HELD, _HELD + count)]), cache=cache.layers)[0])
    together = mx.concatenate(found)
    mx.eval(together)
    return together


def _packed(model: Any, body: BodyTap) -> mx.array:
    """The same of all rows in one forward: two classes, rows that decode and that catch up."""
    cache = RowCache(model, lambda count: count + 3)
    rows = [cache.join(200 if place % 2 else 1) for place in range(len(_COUNTS))]
    _forward(model, cache, body, rows, (_HELD,) * len(rows), 0)
    return _forward(model, cache, body, rows, _COUNTS, _HELD)


def _forward(
    model: Any, cache: RowCache, body: BodyTap, rows: list[Any], counts: Any, held: int
) -> mx.array:
    """Logits of these tokens, row by row: rows 0 and 1 decode behind their first ones."""
    if held:
        for row in rows[:2]:
            cache.to_decoding(row)
    work = list(zip(rows, counts, strict=True))
    decode = sorted(work[:2] if held else [], key=lambda item: cache.place(item[0]))
    cache.begin(decode, work[2:] if held else work)
    tokens = np.zeros(cache.span.padded, dtype=np.int32)
    wanted: dict[int, np.ndarray] = {}
    for row, places in cache.places().items():
        which = rows.index(row)
        tokens[places] = _tokens(which, held, held + len(places))
        wanted[which] = places
    order = np.concatenate([wanted[which] for which in range(len(rows))])
    logits = packed_logits(model, cache, body, mx.array(tokens), order)
    cache.commit()
    mx.eval(logits, cache.arrays)
    return logits
