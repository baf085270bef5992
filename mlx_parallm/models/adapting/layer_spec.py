"""What a layer keeps of each token."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What one attention layer keeps per token.

    Attributes:
        kv_heads: heads of K and V.
        k_dim, v_dim: their widths.
    """

    kv_heads: int
    k_dim: int
    v_dim: int

    @classmethod
    def of(cls, keys: mx.array, values: mx.array) -> LayerSpec:
        """The spec of K and V of shape (..., kv_heads, tokens, dim)."""
        return cls(keys.shape[-3], keys.shape[-1], values.shape[-1])
