"""Masks of grammars on logits, in operations that are fast on each backend."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_parallm.engine.grammar.masks import Masks

_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
# Eight tokens a byte: the largest logit that each may keep.
_CAPS = np.where(_BITS == 1, np.float32(np.inf), np.float32(-np.inf)).astype(np.float32)


def mask_logits(logits: mx.array, masks: Masks) -> mx.array:
    """(N, V) logits, -inf where a mask forbids a token.

    Args:
        logits: (N, V) float32.
        masks: of some of the N rows.
    """
    if len(masks.rows) == logits.shape[0]:
        return _masked(logits, masks.words)
    rows = mx.array(masks.rows)
    masked = logits + 0  # the raw ones are still needed
    masked[rows] = _masked(logits[rows], masks.words)
    return masked


def _masked(logits: mx.array, words: np.ndarray) -> mx.array:
    """(R, V) logits under (R, W) words."""
    size = logits.shape[1]
    if mx.default_device().type == mx.DeviceType.cpu:
        # mx.where and shifts over a vocabulary are slow here; a table on the host is not.
        caps = np.take(_CAPS, words.view(np.uint8), axis=0).reshape(len(words), -1)
        return mx.minimum(logits, mx.array(caps[:, :size]))
    shifts = mx.arange(32, dtype=mx.uint32)
    bits = (mx.array(words)[:, :, None] >> shifts) & 1
    return mx.where(bits.reshape(len(words), -1)[:, :size] == 1, logits, -mx.inf)
