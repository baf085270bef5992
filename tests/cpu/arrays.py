"""Arrays of tests, modules that hold parts, and how close results must be."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn

SIZES = (7, 5000, 40000)  # powf; fused kernels; single operations too


def normal(*shape: int, scale: float = 1.0, seed: int = 0) -> mx.array:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return mx.array(values.astype(np.float32))


def close(found: mx.array, expected: mx.array, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(
        np.array(found.astype(mx.float32)),
        np.array(expected.astype(mx.float32)),
        rtol=tolerance,
        atol=tolerance,
    )


def holder(*parts: Any, **named: Any) -> Any:
    """A module that consists of these."""
    module: Any = nn.Module()
    module.parts = list(parts)
    for name, value in named.items():
        setattr(module, name, value)
    return module


def plain_attention(q: mx.array, k: mx.array, v: mx.array, **options: Any) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, k, v, **options)
