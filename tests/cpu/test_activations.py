"""Activations against mlx.nn's and mlx-lm's."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models import activations as mlx_lm_activations

from mlx_parallm.cpu import activations
from tests.cpu.arrays import SIZES, close, normal


@pytest.mark.parametrize("size", SIZES)
def test_swiglu(each_way: None, size: int) -> None:
    gate, up = normal(size, scale=10), normal(size, seed=1)
    gate[:3] = mx.array([-200.0, 200.0, 0.0])
    close(activations.swiglu(gate, up), mlx_lm_activations.swiglu(gate, up))
    both = normal(4, 2 * size)
    gate, up = mx.split(both, 2, axis=-1)
    close(activations.swiglu(gate, up), nn.silu(gate) * up)


def test_swiglu_in_other_types_is_mlx_s() -> None:
    gate, up = normal(5).astype(mx.bfloat16), normal(5, seed=1).astype(mx.bfloat16)
    assert mx.array_equal(activations.swiglu(gate, up), nn.silu(gate) * up)
    found = activations.precise_swiglu(gate, gate, up)
    close(found, mlx_lm_activations.precise_swiglu(gate, gate, up), 0.01)


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_approx"])
def test_activations_of_nn(name: str) -> None:
    ours, theirs = getattr(activations, name), getattr(nn, name)
    x = mx.concatenate([normal(5000, scale=3), mx.array([-50.0, -12.0, 0.0, 12.0, 50.0])])
    close(ours(x), theirs(x), 1e-6)
    half = x.astype(mx.float16)
    assert mx.array_equal(ours(half), theirs(half))
    compiled = mx.compile(lambda y: ours(y) * 2, shapeless=True)
    close(compiled(x), theirs(x) * 2, 2e-6)
