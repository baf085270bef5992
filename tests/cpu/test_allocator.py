"""What glibc is told."""

from __future__ import annotations

import ctypes

import pytest

from mlx_parallm.cpu import allocator


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_glibc_takes_the_thresholds() -> None:
    assert allocator.keep_freed_memory()
