"""Attention on CPUs against mx.fast's."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_parallm.cpu import attention as cpu_attention
from mlx_parallm.cpu.attention import attention
from tests.cpu.arrays import close, normal, plain_attention

pytestmark = pytest.mark.usefixtures("few_scores_too")


def slots(batch: int, heads: int, columns: int, dim: int, seed: int) -> mx.array:
    """A view of a longer and wider buffer, as the batch's cache gives it."""
    return normal(batch + 2, heads, columns + 9, dim, seed=seed)[1:-1, :, :columns]


def make_mask(kind: str, batch: int, heads: int, width: int, columns: int) -> Any:
    if kind in ("none", "causal"):
        return None if kind == "none" else kind
    rng = np.random.default_rng(columns)
    shape = {"rows": (batch, 1), "heads": (batch, heads), "shared": ()}[kind.split("+")[0]]
    visible = rng.random((*shape, width, columns)) < 0.6
    visible[..., 0] = True
    if kind.endswith("+bias"):
        return mx.array(np.where(visible, rng.random(visible.shape), -np.inf).astype(np.float32))
    return mx.array(visible)


KINDS = ["none", "causal", "rows", "heads", "shared", "rows+bias", "heads+bias", "shared+bias"]


@given(
    batch=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    width=st.sampled_from([1, 2, 5, 33]),
    more=st.sampled_from([0, 1, 30, 260]),
    dims=st.sampled_from([(8, 8), (64, 64), (24, 16)]),
    kind=st.sampled_from(KINDS),
    sinks=st.booleans(),
)
def test_attention(
    batch: int,
    kv_heads: int,
    group: int,
    width: int,
    more: int,
    dims: tuple[int, int],
    kind: str,
    sinks: bool,
) -> None:
    heads, columns = kv_heads * group, width + more
    q = normal(batch, width, heads, dims[0], scale=2).swapaxes(1, 2)
    k, v = slots(batch, kv_heads, columns, dims[0], 1), slots(batch, kv_heads, columns, dims[1], 2)
    mask = make_mask(kind, batch, heads, width, columns)
    options: dict[str, Any] = {"scale": dims[0] ** -0.5, "mask": mask}
    options["sinks"] = normal(heads, seed=3) if sinks else None
    close(attention(q, k, v, **options), plain_attention(q, k, v, **options))


@pytest.mark.parametrize(("batch", "width", "columns"), [(32, 1, 128), (2, 128, 256), (1, 1, 4096)])
def test_attention_of_serving_sizes(each_way: None, batch: int, width: int, columns: int) -> None:
    q = normal(batch, 8, width, 64)
    k, v = slots(batch, 4, columns, 64, 1), slots(batch, 4, columns, 64, 2)
    lengths = np.random.default_rng(0).integers(1, columns - width + 2, batch)
    visible = np.arange(columns) < (lengths[:, None] + np.arange(width))[..., None]
    options: dict[str, Any] = {"scale": 0.125, "mask": mx.array(visible[:, None])}
    close(attention(q, k, v, **options), plain_attention(q, k, v, **options))


def test_masked_columns_do_not_matter(each_way: None) -> None:
    q, k, v = normal(4, 4, 1, 32), normal(4, 2, 700, 32, seed=1), normal(4, 2, 700, 32, seed=2)
    mask = mx.array(np.broadcast_to(np.arange(700) < 600, (4, 1, 1, 700)))
    expected = attention(q, k, v, scale=1.0, mask=mask)
    k[:, :, 600:], v[:, :, 600:] = 1e4, -1e30
    assert mx.array_equal(attention(q, k, v, scale=1.0, mask=mask), expected)


def test_a_query_that_sees_nothing_is_finite() -> None:
    q, k = normal(2, 2, 3, 8), normal(2, 2, 5, 8)
    mask = mx.zeros((2, 1, 3, 5), dtype=mx.bool_)
    assert mx.isfinite(attention(q, k, k, scale=1.0, mask=mask)).all()


def test_large_scores_do_not_overflow(each_way: None) -> None:
    q, k = normal(2, 4, 40, 64, scale=30), normal(2, 4, 80, 64, scale=30)
    options: dict[str, Any] = {"scale": 1.0, "mask": "causal"}
    close(attention(q, k, k, **options), plain_attention(q, k, k, **options), 1e-3)


def test_few_scores_are_left_to_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "_FEW_SCORES", 4096)
    q, k = normal(1, 8, 1, 64), normal(1, 4, 128, 64, seed=1)
    assert mx.array_equal(attention(q, k, k, scale=1.0), plain_attention(q, k, k, scale=1.0))


def test_attention_in_half_precision_is_mlx_s() -> None:
    q = normal(1, 2, 1, 8).astype(mx.float16)
    assert mx.array_equal(attention(q, q, q, scale=1.0), plain_attention(q, q, q, scale=1.0))
