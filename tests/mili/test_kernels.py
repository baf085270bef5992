"""The document's kernels against float64 formulas in NumPy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.mili import kernels
from tests.models.test_kernels import _close, _random, attention, rope


@pytest.mark.parametrize(("dim", "base"), [(16, 10000.0), (64, 1e6)])
def test_rope(dim: int, base: float) -> None:
    q, k = _random(2, 4, 5, dim), _random(2, 2, 5, dim, seed=1)
    positions = np.array([[7], [100]]) + np.arange(5)
    freqs = kernels.compute_rope_freqs(mx.array(positions), dim, base)
    angles = positions[..., None] * base ** (-np.arange(dim // 2) * 2.0 / dim)
    _close(freqs, np.stack([np.cos(angles), np.sin(angles)], axis=-1), 1e-4)
    right = rope(q, positions, dim, base, pairs=False)
    _close(kernels.apply_rope(mx.array(q), freqs[:, None]), right, 1e-4)
    found = kernels.rope_forward(mx.array(q), mx.array(k), mx.array(positions[:, 0]), base)
    _close(found[0], right, 1e-4)
    _close(found[1], rope(k, positions, dim, base, pairs=False), 1e-4)
    assert kernels.compute_rope_freqs(3, dim).shape == (dim // 2, 2)
    with pytest.raises(InvalidRequestError, match="even"):
        kernels.compute_rope_freqs(0, 7)


def test_rms_norm() -> None:
    x, weight = 3 * _random(2, 5, 48), _random(48, seed=1)
    exact = x.astype(np.float64)
    rms = np.sqrt((exact**2).mean(axis=-1, keepdims=True))
    _close(kernels.compute_rms(mx.array(x)), rms)
    right = exact / np.sqrt(rms**2 + 1e-6) * weight
    _close(kernels.rms_norm_forward(mx.array(x), mx.array(weight)), right)
    _close(mx.array(x) / kernels.compute_rms(mx.array(x), 1e-6) * mx.array(weight), right)


@pytest.mark.parametrize("causal", [True, False])
def test_attention(causal: bool) -> None:
    q, k, v = _random(2, 4, 9, 16), _random(2, 2, 12, 16, seed=1), _random(2, 2, 12, 16, seed=2)
    mask = np.arange(12) <= 3 + np.arange(9)[:, None] if causal else None
    found = kernels.attention_forward(*(mx.array(x) for x in (q, k, v)), causal=causal)
    _close(found, attention(q, k, v, 0.25, mask))
    scaled = kernels.attention_forward(*(mx.array(x) for x in (q, k, v)), causal=causal, scale=0.5)
    _close(scaled, attention(q, k, v, 0.5, mask))


def test_decode_attention() -> None:
    q, k, v = _random(3, 4, 1, 16), _random(3, 2, 20, 16, seed=1), _random(3, 2, 20, 16, seed=2)
    arrays = [mx.array(x) for x in (q, k, v)]
    found = kernels.decode_attention_forward(arrays[0], arrays[1], arrays[2])
    _close(found, attention(q, k, v, 0.25, None))
    lengths = np.array([1, 20, 11])
    mask = (np.arange(20) < lengths[:, None])[:, None, None]
    found = kernels.decode_attention_forward(arrays[0], arrays[1], arrays[2], mx.array(lengths))
    _close(found, attention(q, k, v, 0.25, mask))
    with pytest.raises(InvalidRequestError, match="one token"):
        kernels.decode_attention_forward(mx.array(k), arrays[1], arrays[2])


def test_activations() -> None:
    gate, up = 4 * _random(3, 50), _random(3, 50, seed=1)
    exact = gate.astype(np.float64)
    right = exact / (1 + np.exp(-exact))
    _close(kernels.silu(mx.array(gate)), right)
    _close(kernels.swiglu(mx.array(gate), mx.array(up)), right * up)
