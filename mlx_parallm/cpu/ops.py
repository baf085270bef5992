"""Operations that have a faster form on some device; callers need not know which."""

from __future__ import annotations

from functools import lru_cache

import mlx.core as mx

from mlx_parallm.cpu import exponential
from mlx_parallm.cpu.device import is_slow_cpu


@lru_cache(maxsize=1)
def _slow_cpu() -> bool:
    return is_slow_cpu()


def exp(x: mx.array) -> mx.array:
    """e to the power of each element."""
    return exponential.exp(x) if _slow_cpu() else mx.exp(x)


def logsumexp(x: mx.array) -> mx.array:
    """(..., 1) log of the sum of exponentials over the last axis."""
    if _slow_cpu():
        return exponential.logsumexp(x, keepdims=True)
    return mx.logsumexp(x, axis=-1, keepdims=True)
