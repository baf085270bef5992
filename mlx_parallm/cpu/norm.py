"""RMS normalisation whose sum of squares is a matrix product.

MLX's CPU fallback sums rows element by element. Of few tokens, each row's sum is a
product with itself, and all that is behind it one fused kernel.
"""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx
import numpy as np
from mlx import nn

from mlx_parallm.cpu.fusing import fused, is_fusing, sample

_FEW = 8192  # numbers, from which on more operations on vectors are faster


def _sample(rows: int) -> tuple[mx.array, ...]:
    return sample((rows, 1, 8), (rows, 1, 1), (8,), (), ())


@fused(*_sample(1), also=(_sample(2),))
def _scaled(
    x: mx.array, squares: mx.array, weight: mx.array, share: mx.array, eps: mx.array
) -> mx.array:
    return x * mx.rsqrt(squares * share + eps) * weight


class RowRMSNorm(nn.RMSNorm):
    """nn.RMSNorm for CPUs; twice as fast for a few tokens, 1.3 to 1.9 times from 8 rows."""

    def __call__(self, x: mx.array) -> mx.array:
        weight: mx.array = self["weight"]
        if x.dtype != mx.float32 or weight.dtype != mx.float32:
            return mx.fast.rms_norm(x, weight, self.eps)
        if x.ndim == 3 and x.shape[1] == 1 and x.size <= _FEW and is_fusing():
            share, epsilon = _share_and_eps(x.shape[-1], self.eps)
            scaled: mx.array = _scaled(x, x @ x.swapaxes(-1, -2), weight, share, epsilon)
            return scaled
        mean, eps = _mean_and_eps(x.shape[-1], self.eps)
        return x * mx.rsqrt(mx.addmm(eps, mx.square(x), mean)) * weight


@lru_cache(maxsize=32)
def _share_and_eps(dim: int, eps: float) -> tuple[mx.array, mx.array]:
    return mx.array(1.0 / dim), mx.array(eps)


@lru_cache(maxsize=32)
def _mean_and_eps(dim: int, eps: float) -> tuple[mx.array, mx.array]:
    mean = np.full((dim, 1), 1.0 / dim, dtype=np.float32)
    return mx.array(mean), mx.array(np.array([eps], dtype=np.float32))
