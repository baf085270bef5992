"""A second model around the same weights, whose layers can be changed by themselves."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten


def twin_of(model: Any) -> Any:
    """The same modules anew; every parameter is the same array, so that nothing is held twice.

    Args:
        model: an mlx-lm model.
    """
    arrays: list[mx.array] = list(dict(tree_flatten(model.parameters())).values())
    return deepcopy(model, {id(array): array for array in arrays})


def share_weights(twin: Any, model: Any) -> None:
    """Let a twin have the model's arrays again, after those of one of the two were replaced."""
    twin.update(model.parameters())
