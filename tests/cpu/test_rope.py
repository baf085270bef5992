"""Rotary embeddings from tables against mlx-lm's."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models import rope_utils

from mlx_parallm.cpu import rope
from tests.cpu.arrays import close, holder, normal

LLAMA3 = {"factor": 8.0, "original_max_position_embeddings": 256}
ROPES: dict[str, Any] = {
    "plain": lambda: nn.RoPE(16),
    "scaled": lambda: nn.RoPE(16, base=5e5, scale=0.25),
    "llama3": lambda: rope_utils.Llama3RoPE(16, scaling_config=LLAMA3),
    "yarn": lambda: rope_utils.YarnRoPE(16, scaling_factor=4.0, mscale_all_dim=0.5),
    "long": lambda: rope_utils.SuScaledRoPE(16, long_factor=[1.0 + i for i in range(8)]),
    "proportional": lambda: rope_utils.ProportionalRoPE(16, 8),
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("dim", [16, 24])
def test_rope_from_a_table(name: str, dim: int) -> None:
    plain, tabled = ROPES[name](), ROPES[name]()
    model = holder(tabled)
    assert rope.use_tables(model) == 1
    for width, offset in [(1, 0), (3, 1500), (2, mx.array([0, 40])), (1, mx.array([7, 3000]))]:
        x = normal(2, 3, width, dim)
        close(tabled(x, offset=offset), plain(x, offset=offset), 1e-4)
    rope.drop_tables(model)
    assert type(tabled) is type(plain)
    assert not hasattr(tabled, "table")


def test_layers_share_a_table_only_if_they_are_the_same() -> None:
    parts = [nn.RoPE(16), nn.RoPE(16), nn.RoPE(16, base=5e5), nn.RoPE(8)]
    assert rope.use_tables(holder(*parts)) == 4
    assert parts[0].table is parts[1].table
    assert len({id(part.table) for part in parts}) == 3


def test_rope_left_alone() -> None:
    parts = [nn.RoPE(16, traditional=True), rope_utils.DynamicNTKScalingRoPE(16, 64, False, 1e4, 2)]
    assert rope.use_tables(holder(*parts)) == 0


def test_rope_sees_an_offset_that_changed_in_place() -> None:
    tabled: Any = nn.RoPE(16)
    plain: Any = nn.RoPE(16)
    x, offset = normal(2, 1, 1, 16), mx.array([3, 5])
    rope.use_tables(holder(tabled))
    tabled(x, offset=offset)
    offset += 4
    close(tabled(x, offset=offset), plain(x, offset=mx.array([7, 9])))


def test_rope_where_the_table_does_not_reach() -> None:
    tabled: Any = nn.RoPE(16)
    plain: Any = nn.RoPE(16)
    x = normal(1, 1, 2, 16)
    rope.use_tables(holder(tabled))
    traced = mx.compile(lambda y, offset: tabled(y, offset=offset))
    close(traced(x, mx.array([5])), plain(x, offset=5))
    assert mx.array_equal(tabled(x, offset=1 << 20), plain(x, offset=1 << 20))
    half = x.astype(mx.float16)
    assert mx.array_equal(tabled(half, offset=9), plain(half, offset=9))
    assert mx.isfinite(tabled(x, offset=mx.array([-3]))).all()
