"""Weights of checkpoints whose names are not those that mlx-lm expects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import _get_classes

Weights = dict[str, mx.array]


def classes_that(
    rename: Callable[[Weights], Weights], own: tuple[type, type] | None = None
) -> Callable[..., tuple[type, type]]:
    """mlx-lm's classes for a config, or these; weights are renamed before they see them."""

    def classes(config: dict[str, Any]) -> tuple[type, type]:
        model_class, args_class = own or _get_classes(config)

        def sanitize(self: Any, weights: Weights) -> Weights:
            weights = rename(weights)
            inner = getattr(super(kind, self), "sanitize", None)
            return inner(weights) if inner is not None else weights

        # By its module a class is known for what it is (see adapt.py).
        members = {"sanitize": sanitize, "__module__": model_class.__module__}
        kind = type(model_class.__name__, (model_class,), members)
        return kind, args_class

    return classes


def weight_names(folder: Path) -> set[str]:
    """Names of the tensors in a model's files."""
    files = folder.glob("model*.safetensors")
    return {str(name) for file in files for name in dict(mx.load(str(file)))}  # type: ignore[arg-type]
