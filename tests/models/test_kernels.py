"""MLX's fused kernels against float64 formulas in NumPy."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

TOLERANCE = 2e-5  # float32, of values around 1


def _random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _close(found: mx.array, right: np.ndarray, tolerance: float = TOLERANCE) -> None:
    assert found.shape == right.shape
    np.testing.assert_allclose(np.array(found), right, atol=tolerance, rtol=tolerance)


def rope(x: np.ndarray, positions: np.ndarray, dims: int, base: float, pairs: bool) -> np.ndarray:
    """(B, H, T, D) rotated by (B, T) positions: Su et al., arXiv 2104.09864.

    pairs: neighbouring values are a pair ("traditional"), else the two halves' are.
    """
    x = x.astype(np.float64)
    half = dims // 2
    angles = positions[..., None] * base ** (-np.arange(half) * 2.0 / dims)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    first, second = (
        (x[..., 0:dims:2], x[..., 1:dims:2]) if pairs else (x[..., :half], x[..., half:dims])
    )
    one, other = first * cos - second * sin, first * sin + second * cos
    turned = np.stack([one, other], -1).reshape(*one.shape[:-1], dims) if pairs else None
    if turned is None:
        turned = np.concatenate([one, other], -1)
    return np.asarray(np.concatenate([turned, x[..., dims:]], -1))


@pytest.mark.parametrize("traditional", [False, True])
@pytest.mark.parametrize(("dims", "base"), [(16, 10000.0), (16, 1e6), (8, 500.0)])
@pytest.mark.parametrize("width", [1, 7])
def test_rope(traditional: bool, dims: int, base: float, width: int) -> None:
    x = _random(3, 4, width, 16)
    offsets = np.array([0, 5, 300])
    right = rope(x, offsets[:, None] + np.arange(width), dims, base, traditional)
    found = mx.fast.rope(
        mx.array(x), dims, traditional=traditional, base=base, scale=1.0, offset=mx.array(offsets)
    )
    # Angles of 300 have float32's precision.
    _close(found, right, 1e-4)
    same = mx.fast.rope(mx.array(x), dims, traditional=traditional, base=base, scale=1.0, offset=11)
    positions = np.broadcast_to(11 + np.arange(width), (3, width))
    _close(same, rope(x, positions, dims, base, traditional), 1e-4)


@pytest.mark.parametrize("size", [8, 100, 1024])
@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_rms_norm(size: int, eps: float) -> None:
    x, weight = 3 * _random(5, 3, size), _random(size, seed=1)
    exact = x.astype(np.float64)
    right = exact / np.sqrt((exact**2).mean(axis=-1, keepdims=True) + eps) * weight
    _close(mx.fast.rms_norm(mx.array(x), mx.array(weight), eps), right)


def attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, mask: np.ndarray | None
) -> np.ndarray:
    """softmax(q k^T scale) v with grouped heads: (B, Hq, T, D), (B, Hkv, S, D)."""
    repeats = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(np.float64), repeats, axis=1) for x in (k, v))
    scores = q.astype(np.float64) @ k.swapaxes(-1, -2) * scale
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True) @ v)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dim", [8, 64])
@pytest.mark.parametrize("before", [0, 9])
def test_prefill_attention(kv_heads: int, dim: int, before: int) -> None:
    width = 33
    q = _random(2, 4, width, dim)
    k, v = (_random(2, kv_heads, before + width, dim, seed=s) for s in (1, 2))
    scale = dim**-0.5
    causal = np.arange(before + width) <= before + np.arange(width)[:, None]
    arrays = [mx.array(x) for x in (q, k, v)]
    found = mx.fast.scaled_dot_product_attention(*arrays, scale=scale, mask="causal")
    right = attention(q, k, v, scale, causal)
    _close(found, right)
    explicit = mx.fast.scaled_dot_product_attention(*arrays, scale=scale, mask=mx.array(causal))
    _close(explicit, right)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("dim", [8, 64, 128])
@pytest.mark.parametrize("length", [1, 5, 200])
def test_decode_attention(kv_heads: int, dim: int, length: int) -> None:
    q = _random(3, 4, 1, dim)
    k, v = (_random(3, kv_heads, length, dim, seed=s) for s in (1, 2))
    arrays = [mx.array(x) for x in (q, k, v)]
    found = mx.fast.scaled_dot_product_attention(*arrays, scale=dim**-0.5, mask=None)
    _close(found, attention(q, k, v, dim**-0.5, None))
    # Rows of a batch end where they like.
    ends = np.array([1, length, (length + 1) // 2])
    mask = (np.arange(length) < ends[:, None])[:, None, None]
    found = mx.fast.scaled_dot_product_attention(*arrays, scale=dim**-0.5, mask=mx.array(mask))
    _close(found, attention(q, k, v, dim**-0.5, mask))
