"""Attention of a picture's tokens in pieces, each of which takes a CPU some milliseconds."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx import nn

_NAME = "scaled_dot_product_attention"
_FUSED = "ensure_fused_sdpa"  # mlx-vlm's own around it, which is compiled as a whole
_BASE = "mlx_vlm.models.base"  # some towers look it up there with every call
_SCORES = 1 << 18  # of one piece at most
_writing = threading.Lock()  # the functions are every thread's

Attention = Callable[..., mx.array]


@contextmanager
def in_pieces(model: nn.Module, trace: deque[mx.array]) -> Iterator[None]:
    """Write attention down in pieces on this thread, and keep each of them.

    The values are those of the whole: every query is computed by itself.

    Args:
        model: an mlx-vlm model.
    """
    with _writing:
        places = [(mx.fast, _NAME), *((m, _FUSED) for m in _modules(model) if hasattr(m, _FUSED))]
        before = [getattr(place, name) for place, name in places]
        whole, writer = before[0], threading.get_ident()
        for (place, name), own in zip(places, before, strict=True):
            setattr(place, name, _replaced(own, whole, writer, trace))
        try:
            yield
        finally:
            for (place, name), own in zip(places, before, strict=True):
                setattr(place, name, own)


def _modules(model: nn.Module) -> list[Any]:
    names = {_BASE, *(type(part).__module__ for part in model.modules())}
    return [sys.modules[name] for name in sorted(names) if name in sys.modules]


def _replaced(own: Attention, whole: Attention, writer: int, trace: deque[mx.array]) -> Attention:
    """What stands for one of the functions meanwhile."""

    def attention(q: mx.array, k: mx.array, v: mx.array, *more: Any, **how: Any) -> mx.array:
        if threading.get_ident() != writer:
            return own(q, k, v, *more, **how)
        names = ("scale", "mask")
        return _attention(q, k, v, whole, trace, **dict(zip(names, more, strict=False)), **how)

    return attention


def _attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    whole: Attention,
    trace: deque[mx.array],
    *,
    mask: mx.array | str | None = None,
    **how: Any,
) -> mx.array:
    """(B, heads, T, D), as MLX's own."""
    row = max(1, q.shape[0] * q.shape[1] * k.shape[2])  # a window may be empty
    step = max(1, _SCORES // row)
    if step >= q.shape[2] or isinstance(mask, str):
        return whole(q, k, v, mask=mask, **how)
    parts = []
    for first in range(0, q.shape[2], step):
        queries = slice(first, first + step)
        by_query = mask is not None and mask.shape[-2] > 1
        seen = mask[..., queries, :] if mask is not None and by_query else mask
        parts.append(whole(q[:, :, queries], k, v, mask=seen, **how))
    trace.extend(parts)
    return mx.concatenate(parts, axis=2)
