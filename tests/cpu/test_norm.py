"""RMSNorm by rows against mlx.nn's."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn

from mlx_parallm.cpu.norm import RowRMSNorm
from tests.cpu.arrays import close, normal


@pytest.mark.parametrize("shape", [(512,), (1, 1, 64), (8, 1, 512), (3, 40, 100)])
def test_rms_norm(shape: tuple[int, ...]) -> None:
    plain, ours = nn.RMSNorm(shape[-1], eps=1e-3), RowRMSNorm(shape[-1], eps=1e-3)
    plain.weight = ours.weight = normal(shape[-1], seed=1)
    x = normal(*shape, scale=5)
    close(ours(x), plain(x))
    half = x.astype(mx.bfloat16)
    assert mx.array_equal(ours(half), plain(half))
