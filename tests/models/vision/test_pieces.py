"""Attention in pieces is attention, with a mask or without, and nobody else's is changed."""

from __future__ import annotations

import threading
from collections import deque

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn

from mlx_parallm.models.vision.pieces import in_pieces

QUERIES, KEYS = 700, 500


@pytest.mark.parametrize("masked", [None, "rows", "columns"])
def test_pieces_are_the_whole(masked: str | None) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (
        mx.array(rng.standard_normal((1, 2, n, 8)).astype(np.float32))
        for n in (QUERIES, KEYS, KEYS)
    )
    mask = None
    if masked:
        mask = mx.array(rng.random((QUERIES if masked == "rows" else 1, KEYS)) < 0.5)[None, None]
    whole = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)
    before, trace = mx.fast.scaled_dot_product_attention, deque[mx.array]()
    with in_pieces(nn.Linear(2, 2), trace):
        pieces = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3, mask=mask)
        elsewhere = threading.Thread(
            target=lambda: mx.fast.scaled_dot_product_attention(q, k, v, scale=0.3)
        )
        elsewhere.start()
        elsewhere.join()
    assert len(trace) == 3, "of 262 queries at most, and none of another thread"
    assert np.abs(np.array(whole - pieces)).max() < 1e-6
    assert mx.fast.scaled_dot_product_attention is before
