"""Tiny random models of every architecture that mlx-lm ships.

`TINY[model_type]` is a config.json in the model's own words, small enough to run
hundreds of forwards a second and yet with every kind of layer that the
architecture has: windows shorter than the prompts, grouped heads, several
experts, at least one recurrent and one attention layer in a hybrid.
`build(model_type, seed)` makes the model, offline. "type:variant" is another
configuration of the same model type.
"""

from __future__ import annotations

import copy
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.utils import _get_classes

from tests.models.tiny_attention import ATTENTION
from tests.models.tiny_mixed import MIXED
from tests.models.tiny_shapes import VOCAB, WINDOW, Config

__all__ = ["TINY", "VOCAB", "WINDOW", "build", "config", "vocab_size"]

TINY: dict[str, Config] = ATTENTION | MIXED


def build(model_type: str, seed: int = 0) -> Any:
    """A tiny model with random float32 weights, evaluated."""
    mx.random.seed(seed)  # biases keep a part of their own initial values
    model_class, args_class = _get_classes(config(model_type))
    model = model_class(args_class.from_dict(config(model_type)))
    model.update(_random_weights(model, seed))
    model.eval()
    mx.eval(model.parameters())
    return model


def config(model_type: str) -> Config:
    """The config.json of a tiny model."""
    # Some of mlx-lm's classes write into the dictionaries they are given.
    return copy.deepcopy({"model_type": model_type} | TINY[model_type])


def _random_weights(model: nn.Module, seed: int) -> Any:
    """Weights that leave clear gaps between logits, and no parameter at its default."""
    keys = iter(mx.random.split(mx.random.key(seed), len(tree_flatten(model.parameters()))))

    def draw(path: str, value: mx.array) -> Any:
        noise = mx.random.normal(value.shape, key=next(keys))
        if value.dtype == mx.uint32:  # packed weights
            return mx.random.randint(0, 1 << 31, value.shape, mx.uint32, key=mx.random.key(seed))
        if not mx.issubdtype(value.dtype, mx.floating):
            return value
        if path.endswith((".scales", ".biases")):
            return (0.05 * noise).astype(value.dtype)
        if value.ndim < 2:
            return value.astype(mx.float32) + 0.2 * noise
        if "embed" in path or "wte" in path:
            return 0.5 * noise
        gain = 3.0 if "head" in path else 2.0
        return gain * noise / value.shape[-1] ** 0.5

    return tree_map_with_path(draw, model.parameters())


def vocab_size(model_type: str) -> int:
    """Columns of the model's logits."""
    inner = TINY[model_type].get("text_config", TINY[model_type])
    return int(inner.get("vocab_size") or inner["num_vocab"])
