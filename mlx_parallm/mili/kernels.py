"""The document's kernels as functions of MLX arrays, on MLX's fused ones where there are any.

x of a layer is (B, T, D); Q, K and V of attention are (B, heads, T, dim). tests/mili checks
each of them against a float64 formula.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_parallm.errors import InvalidRequestError


def compute_rope_freqs(pos: mx.array | int, head_dim: int, base: float = 10000.0) -> mx.array:
    """(..., head_dim / 2, 2): cosine and sine by which each pair at `pos` is rotated.

    Source: Su et al., "RoFormer", arXiv 2104.09864. pos: (...), whole numbers.
    """
    if head_dim < 2 or head_dim % 2:
        raise InvalidRequestError("head_dim is even", param="head_dim")
    speeds = base ** (mx.arange(0, head_dim, 2) / -head_dim)
    angles = mx.array(pos)[..., None] * speeds
    return mx.stack([mx.cos(angles), mx.sin(angles)], axis=-1)


def apply_rope(x: mx.array, freqs: mx.array) -> mx.array:
    """x rotated; value i is a pair with value i + dim / 2, as in Qwen and Llama checkpoints.

    Args:
        x: (..., dim).
        freqs: (..., dim / 2, 2), as compute_rope_freqs gives them.
    """
    first, second = mx.split(x, 2, axis=-1)
    cos, sin = freqs[..., 0], freqs[..., 1]
    return mx.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def rope_forward(
    q: mx.array, k: mx.array, offset: mx.array | int = 0, base: float = 10000.0
) -> tuple[mx.array, mx.array]:
    """Q and K, rotated from position `offset` on: one number, or (B,) one for each row."""
    rotated = [
        mx.fast.rope(x, x.shape[-1], traditional=False, base=base, scale=1.0, offset=offset)
        for x in (q, k)
    ]
    return rotated[0], rotated[1]


def compute_rms(x: mx.array, eps: float = 0.0) -> mx.array:
    """(..., 1): root of the mean square of the last axis; Zhang, Sennrich, arXiv 1910.07467."""
    return mx.sqrt(mx.square(x).mean(axis=-1, keepdims=True) + eps)


def rms_norm_forward(x: mx.array, weight: mx.array, eps: float = 1e-6) -> mx.array:
    """x / rms(x) * weight; weight (D,)."""
    return mx.fast.rms_norm(x, weight, eps)


def attention_forward(
    q: mx.array, k: mx.array, v: mx.array, *, causal: bool = True, scale: float | None = None
) -> mx.array:
    """softmax(Q K^T * scale) V without the whole matrix in memory, as FlashAttention.

    Source: Dao et al., arXiv 2205.14135. Q may have a multiple of the heads of K and V. The
    last query is at the last key, so that K and V may begin with a cache.

    Args:
        scale: None is dim ** -0.5.
    """
    mask = "causal" if causal else None
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=_scale(q, scale), mask=mask)


def decode_attention_forward(
    q: mx.array,
    k_cache: mx.array,
    v_cache: mx.array,
    lengths: mx.array | None = None,
    *,
    scale: float | None = None,
) -> mx.array:
    """Attention of one new token a row: q (B, heads, 1, dim), caches (B, kv_heads, S, dim).

    Args:
        lengths: (B,) tokens of each row that count; None is all S.
    """
    if q.shape[-2] != 1:
        raise InvalidRequestError("decoding is one token a row", param="q")
    mask = None
    if lengths is not None:
        mask = (mx.arange(k_cache.shape[-2]) < lengths[:, None])[:, None, None]
    return mx.fast.scaled_dot_product_attention(
        q, k_cache, v_cache, scale=_scale(q, scale), mask=mask
    )


def silu(x: mx.array) -> mx.array:
    """x * sigmoid(x): the config's hidden_act "silu"."""
    return x * mx.sigmoid(x)


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up: the middle of Qwen3's MLP; Shazeer, arXiv 2002.05202."""
    return silu(gate) * up


def _scale(q: mx.array, scale: float | None) -> float:
    return float(q.shape[-1] ** -0.5) if scale is None else scale
