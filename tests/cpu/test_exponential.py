"""exp, softmax and their family against MLX's own."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_parallm.cpu import exponential
from tests.cpu.arrays import SIZES, close, normal


@pytest.mark.parametrize("size", SIZES)
def test_exp_is_exact_to_its_promise(each_way: None, size: int) -> None:
    x = np.linspace(-87, 88, size).astype(np.float32)
    exact = np.exp(x.astype(np.float64))
    error = np.abs(np.array(exponential.exp(mx.array(x))) / exact - 1)
    assert error.max() < 5e-6
    assert error[np.abs(x) < 10].max(initial=0) < 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_exp_at_the_ends(each_way: None, size: int) -> None:
    ends = [-math.inf, -1e30, -104.0, 0.0, 89.0, 1e30, math.inf, math.nan]
    x = mx.array(ends + [0.0] * size)
    found = np.array(exponential.exp(x))[: len(ends)]
    np.testing.assert_array_equal(found[:7], [0, 0, 0, 1, math.inf, math.inf, math.inf])
    assert math.isnan(found[7])


def test_exp_of_strided_and_of_other_types(each_way: None) -> None:
    x = normal(300, 200).T
    close(exponential.exp(x), mx.exp(x))
    half = x.astype(mx.bfloat16)
    assert mx.array_equal(exponential.exp(half), mx.exp(half))


@given(
    rows=st.integers(1, 5),
    columns=st.sampled_from([1, 7, 256, 300, 4096, 50000]),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1000.0]),
    masked=st.booleans(),
)
def test_softmax_family(rows: int, columns: int, scale: float, masked: bool) -> None:
    x = normal(rows, columns, scale=scale, seed=columns)
    if masked and columns > 1:
        x[:, ::2] = -math.inf
    close(exponential.softmax(x), mx.softmax(x, axis=-1))
    close(exponential.logsumexp(x), mx.logsumexp(x, axis=-1))
    close(exponential.logsumexp(x, keepdims=True), mx.logsumexp(x, axis=-1, keepdims=True))
    close(exponential.log_softmax(x), x - mx.logsumexp(x, axis=-1, keepdims=True))


def test_softmax_over_another_axis_is_mlx_s() -> None:
    x = normal(3, 4)
    assert mx.array_equal(exponential.softmax(x, axis=0), mx.softmax(x, axis=0))
    assert mx.array_equal(exponential.logsumexp(x, axis=0), mx.logsumexp(x, axis=0))


def test_row_sum_of_more_than_the_cache_holds() -> None:
    x = normal(2100, 512)
    close(exponential.row_sum(x), x.sum(axis=-1, keepdims=True), 1e-4)
    assert mx.array_equal(exponential.row_max(x), x.max(axis=-1, keepdims=True))
