"""sample_utils: what may be drawn, and how often, against the distribution in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm import sample_utils
from mlx_parallm.errors import InvalidRequestError

ROWS = 4000
LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -8.0])


def _odds(temperature: float, keep: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    p = np.exp(LOGITS / temperature)
    p = np.where(keep(p / p.sum()), p, 0)
    return np.asarray(p / p.sum())


@pytest.mark.parametrize(
    ("draw", "right"),
    [
        (
            lambda x, seed: sample_utils.categorical_sampling(x, 1.0, seed),
            _odds(1.0, lambda p: p > 0),
        ),
        (
            lambda x, seed: sample_utils.top_k_sampling(x, 3, 2.0, seed),
            _odds(2.0, lambda p: p > 0.15),
        ),
        (
            lambda x, seed: sample_utils.top_p_sampling(x, 0.8, 1.0, seed),
            _odds(1.0, lambda p: p > 0.1),
        ),
    ],
)
def test_draws(draw: Any, right: np.ndarray) -> None:
    batch = mx.array(np.tile(LOGITS, (ROWS, 1)).astype(np.float32))
    tokens = np.array(draw(batch, 5))
    assert tokens.shape == (ROWS,)
    found = np.bincount(tokens, minlength=len(LOGITS)) / ROWS
    assert (found[right == 0] == 0).all()
    np.testing.assert_allclose(found, right, atol=4 * 0.5 / ROWS**0.5)
    assert np.array_equal(np.array(draw(batch, 5)), tokens)
    assert not np.array_equal(np.array(draw(batch, None)), np.array(draw(batch, None)))


def test_greedy_and_cold_are_the_likeliest() -> None:
    logits = mx.array(LOGITS.astype(np.float32))[None]
    assert sample_utils.greedy_sampling(logits).tolist() == [0]
    assert sample_utils.categorical_sampling(logits, 0.0).tolist() == [0]


def test_settings_that_make_no_sense() -> None:
    logits = mx.zeros((1, 4))
    wrong: list[tuple[str, Callable[[], mx.array]]] = [
        ("top_p", lambda: sample_utils.top_p_sampling(logits, 0.0)),
        ("top_k", lambda: sample_utils.top_k_sampling(logits, 0)),
        ("temperature", lambda: sample_utils.categorical_sampling(logits, -1.0)),
    ]
    for name, call in wrong:
        with pytest.raises(InvalidRequestError) as error:
            call()
        assert error.value.param == name
