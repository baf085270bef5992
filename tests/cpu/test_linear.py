"""Weights in another layout: the same numbers."""

from __future__ import annotations

from typing import Any, cast

import mlx.core as mx
import numpy as np
import pytest
from mlx import nn
from mlx.utils import tree_flatten

from mlx_parallm.cpu import blas, linear
from tests.cpu.arrays import close, holder, normal


def two_layers(tied: bool) -> Any:
    """An embedding and two linear layers, two of them with 1024 inputs."""
    return holder(
        args=type("Args", (), {"tie_word_embeddings": tied}),
        embed=nn.Embedding(500, 1024),
        up=nn.Linear(1024, 300, bias=True),
        down=nn.Linear(300, 1024),
    )


def weights(model: Any) -> dict[str, mx.array]:
    return dict(cast(Any, tree_flatten(model.parameters())))


@pytest.fixture
def plain_blas(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where our own products could not be compiled."""
    monkeypatch.setattr(blas, "info", lambda: blas.BlasInfo("OpenBLAS", "wheel"))


def test_our_own_products_want_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    own = blas.BlasInfo("OpenBLAS", "wheel", own_products=True)
    monkeypatch.setattr(blas, "info", lambda: own)
    assert linear.optimize_linears(two_layers(tied=True)) == 0


@pytest.mark.usefixtures("plain_blas")
def test_only_the_layout_of_weights_changes() -> None:
    model = two_layers(tied=True)
    before = {name: np.array(value) for name, value in weights(model).items()}
    x, tokens = normal(3, 1024), mx.array([[0, 499], [7, 7]])
    expected = [model.up(x), model.embed.as_linear(x), model.embed(tokens)]
    assert linear.optimize_linears(model) == 2
    after = weights(model)
    assert after.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(np.array(after[name]), value)
    for found, wanted in zip(
        [model.up(x), model.embed.as_linear(x), model.embed(tokens)], expected, strict=True
    ):
        close(found, wanted, 1e-4)


@pytest.mark.usefixtures("plain_blas")
def test_weights_that_do_not_gain_stay() -> None:
    model = two_layers(tied=False)
    before = model.embed.weight
    assert linear.optimize_linears(model) == 1  # up: 1024 inputs
    assert model.embed.weight is before


@pytest.mark.usefixtures("plain_blas")
def test_updates_reach_a_weight_of_another_layout() -> None:
    model = two_layers(tied=False)
    linear.optimize_linears(model)
    model.update({"up": {"weight": mx.ones((300, 1024))}})
    close(model.up(mx.ones((1, 1024))) - model.up.bias, mx.full((1, 300), 1024.0))
