"""The exact search for the most similar memories against brute force in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.cache.retrieval import LayerMemory, largest, largest_on_host

Select = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
Search = Callable[[LayerMemory, mx.array, int, float | None], tuple[Any, Any]]


def select_with_mlx(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    ids, found = largest(mx.array(values), k)
    return np.array(ids), np.array(found)


def select_on_host(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return largest_on_host(np.ascontiguousarray(values.swapaxes(1, 2)), k)


SELECTIONS: list[Select] = [select_with_mlx, select_on_host]
# The first is what the CPU takes, the second what GPUs do.
SEARCHES: list[Search] = [LayerMemory._nearest_on_host, LayerMemory._nearest]


@pytest.mark.parametrize("select", SELECTIONS)
@settings(max_examples=120, deadline=None)
@given(
    size=st.integers(1, 900),
    share=st.floats(0, 1),
    distinct=st.sampled_from([1, 2, 5, 40, 10**6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_k_largest_with_ties_and_of_any_length(
    select: Select, size: int, share: float, distinct: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    k = max(1, round(size * share**3))
    values = (rng.integers(-distinct, distinct, (2, 3, size)) / 8).astype(np.float32)
    ids, found = select(values, k)
    assert ids.shape == found.shape == (2, 3, k)
    # Each is there once, is what it is said to be, and nothing larger was left out.
    assert (np.diff(np.sort(ids, axis=-1), axis=-1) > 0).all()
    assert (np.take_along_axis(values, ids.astype(np.int64), axis=-1) == found).all()
    expected = np.sort(values, axis=-1)[..., size - k :]
    assert (np.sort(found, axis=-1) == expected).all()


@pytest.mark.parametrize("search", SEARCHES)
@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(2, 700),
    k=st.integers(1, 40),
    queries=st.integers(1, 9),
    repeated=st.booleans(),
    threshold=st.sampled_from([None, -0.2, 0.3, 1.1]),
    seed=st.integers(0, 2**32 - 1),
)
def test_search_equals_brute_force_in_float64(
    search: Search,
    size: int,
    k: int,
    queries: int,
    repeated: bool,
    threshold: float | None,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((2, size, 8)).astype(np.float32)
    if repeated:  # a text that says one thing again and again
        keys = keys[:, rng.integers(0, 5, size) % size].copy()
    asked = rng.standard_normal((2, queries, 8)).astype(np.float32)
    k = min(k, size - 1)
    memory = LayerMemory(mx.array(keys), mx.array(keys))
    places, scores = (np.array(a) for a in search(memory, mx.array(asked), k, threshold))
    ids = places - np.arange(2)[:, None, None] * size
    assert (np.diff(np.sort(ids, axis=-1), axis=-1) > 0).all()
    assert ((ids >= 0) & (ids < size)).all()
    exact = keys.astype(np.float64)
    expected = asked.astype(np.float64) @ exact.swapaxes(-1, -2)
    lengths = np.linalg.norm(exact, axis=-1)[:, None]
    similar = expected / lengths / np.linalg.norm(asked, axis=-1, keepdims=True)
    chosen = np.take_along_axis(similar, ids, axis=-1)
    best = np.sort(similar, axis=-1)[..., size - k :]
    assert np.abs(np.sort(chosen, axis=-1) - best).max() < 1e-5
    if threshold is not None:
        near = np.abs(chosen - threshold) < 1e-5
        assert ((scores == -np.inf) == (chosen <= threshold))[~near].all()
    seen = scores > -np.inf
    assert np.allclose(scores[seen], np.take_along_axis(expected, ids, axis=-1)[seen], atol=1e-5)


def test_a_query_that_is_not_a_number_does_not_disturb_the_others() -> None:
    rng = np.random.default_rng(3)
    keys = mx.array(rng.standard_normal((1, 300, 8)).astype(np.float32))
    asked = rng.standard_normal((1, 4, 8)).astype(np.float32)
    memory = LayerMemory(keys, keys)
    expected, _ = memory.nearest(mx.array(asked), 6)
    asked[0, 1] = np.nan
    found, _ = memory.nearest(mx.array(asked), 6)
    others = [0, 2, 3]
    mine, theirs = np.sort(np.array(found)), np.sort(np.array(expected))
    assert (mine[:, others] == theirs[:, others]).all()
    assert ((mine >= 0) & (mine < 300)).all()
