"""The bundled language model, grown wider so that it can read pictures and stays what it was.

Every vector of the model gets new columns beside the old ones, and every layer new heads and new
neurons. What was trained before is not touched. The new parts are laid out so that they are
exactly zero as long as nothing has come from a picture:

- text embeddings have zeros in the new columns, only a picture's tokens have something there;
- what new heads carry (`v_proj`) and new neurons multiply with (`up_proj`) is read from the new
  columns only;
- old heads and old neurons do not write into the new columns.

So for text alone the grown model computes what the old one does, and the whole is a plain Llama
that every program reads. The RMS norms see one and a half times as many columns, a third of them
zero; their weights and epsilon make up for it.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

# New columns, heads (and their keys and values), neurons.
COLUMNS, HEADS, KV_HEADS, NEURONS = 64, 2, 1, 64

# Weights whose new rows may read the old columns too.
_READ_ALL = ("q_proj", "k_proj", "gate_proj")


def grown_config(old: dict[str, Any], marks: int) -> dict[str, Any]:
    """config.json of the grown model, with `marks` more tokens."""
    width = old["hidden_size"] + COLUMNS
    return {
        **old,
        "hidden_size": width,
        "num_attention_heads": old["num_attention_heads"] + HEADS,
        "num_key_value_heads": old["num_key_value_heads"] + KV_HEADS,
        "intermediate_size": old["intermediate_size"] + NEURONS,
        "vocab_size": old["vocab_size"] + marks,
        "rms_norm_eps": old["rms_norm_eps"] * old["hidden_size"] / width,
        "tie_word_embeddings": False,
    }


class Grown(nn.Module):
    """The new blocks (trained) around the old weights (frozen).

    Args:
        old: weights of the old model by name, tied embeddings.
        new: a model of the grown config; its shapes say how large the blocks are.
    """

    def __init__(self, old: dict[str, mx.array], new: nn.Module, padding: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._old, self._padding = old, padding
        shapes = {name: weight.shape for name, weight in flat(new)}
        self._widths = (old["model.norm.weight"].size, shapes["model.norm.weight"][0])
        self._names = list(shapes)
        depth = sum(name.endswith("o_proj.weight") for name in old)
        for name, shape in shapes.items():
            for part, block in _fresh(name, shape, old, depth).items():
                self[_key(name, part)] = block

    def weights(self) -> list[tuple[str, mx.array]]:
        """All weights of the grown model."""
        return [(name, self._whole(name)) for name in self._names]

    def _whole(self, name: str) -> mx.array:
        if name.startswith("model.embed_tokens"):
            zeros = mx.zeros((self._old[name].shape[0], COLUMNS))
            return mx.concatenate(
                [mx.concatenate([self._old[name], zeros], axis=1), self[_key(name, "below")]]
            )
        if name.startswith("lm_head"):
            return self._head(name)
        old = self._old[name]
        if old.ndim == 1:
            kept = old * math.sqrt(self._widths[0] / self._widths[1])
            return mx.concatenate([kept, self[_key(name, "right")]])
        top = mx.concatenate([old, self[_key(name, "right")]], axis=1)
        below = self[_key(name, "below")]
        if below.shape[1] < top.shape[1]:
            below = mx.concatenate([mx.zeros((below.shape[0], old.shape[1])), below], axis=1)
        return mx.concatenate([top, below])

    def _head(self, name: str) -> mx.array:
        """The marks around pictures are never said: they weigh what padding weighs."""
        old = self._old["model.embed_tokens.weight"]
        top = mx.concatenate([old, self[_key(name, "right")]], axis=1)
        marks = self[_key("model.embed_tokens.weight", "below")].shape[0]
        return mx.concatenate([top, *[top[self._padding][None]] * marks])


def _key(name: str, part: str) -> str:
    """The name of a block: a path of MLX's has dots, a parameter has none."""
    return f"{name.replace('.', ':')}|{part}"


def _fresh(
    name: str, shape: tuple[int, ...], old: dict[str, mx.array], depth: int
) -> dict[str, mx.array]:
    """New blocks of one weight, as they begin."""
    if name.startswith("model.embed_tokens"):
        rows = shape[0] - old[name].shape[0]
        return {"below": mx.random.normal((rows, shape[1])) * 0.3}
    if name.startswith("lm_head"):
        return {"right": mx.zeros((old["model.embed_tokens.weight"].shape[0], COLUMNS))}
    if len(shape) == 1:
        return {"right": mx.ones((shape[0] - old[name].size,))}
    rows, columns = old[name].shape
    scale = shape[1] ** -0.5
    if "o_proj" in name or "down_proj" in name:
        scale /= (2 * depth) ** 0.5
    width = shape[1] if any(part in name for part in _READ_ALL) else shape[1] - columns
    return {
        "right": mx.random.normal((rows, shape[1] - columns)) * scale,
        "below": mx.random.normal((shape[0] - rows, width)) * scale,
    }


def flat(tree: nn.Module) -> list[tuple[str, mx.array]]:
    found: Any = tree_flatten(tree.parameters())
    return list(found)
