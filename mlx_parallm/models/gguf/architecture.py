"""What an architecture of GGUF files is: names of tensors, config.json, and what is undone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.names import LLAMA, TOP
from mlx_parallm.models.gguf.reader import GgufFile

Config = dict[str, Any]
# Changes of a tensor: llama.cpp's name of it within a layer, its rows or values, config.json.
Change = Callable[[str, np.ndarray, Config], np.ndarray]
# The order of a tensor's columns, in groups of 32; None where it stays.
Columns = Callable[[str, Config], np.ndarray | None]

# Tables that mlx-lm computes, or that config.json has.
_LEFT_OUT = ("rope_freqs", "attn_rot_embd", "rope_factors_long", "rope_factors_short")


def unchanged(part: str, array: np.ndarray, config: Config) -> np.ndarray:
    """The array."""
    return array


def rotary_pairs(part: str, rows: np.ndarray, config: Config) -> np.ndarray:
    """Rows of q and k as Hugging Face has them.

    llama.cpp has the two numbers of a rotary pair side by side (2i, 2i + 1), Hugging Face and MLX
    half a head apart (i, i + d/2).
    """
    heads = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    module = part.rpartition(".")[0]
    if module not in heads:
        return rows
    count = int(config[heads[module]])
    pairs = rows.reshape(count, rows.shape[0] // count // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)


def norms_minus_one(part: str, values: np.ndarray, config: Config) -> np.ndarray:
    """Weights of norms as mlx-lm has them, where llama.cpp's converter added 1."""
    return values - np.float32(1) if part.endswith("norm.weight") else values


@dataclass(frozen=True)
class Architecture:
    """How one of llama.cpp's architectures maps to one of mlx-lm's.

    Attributes:
        model_type: mlx-lm's.
        parts: modules within a layer, by llama.cpp's name without its suffix; an array that is no
            module's weight or bias has its whole name.
        more: entries of config.json beyond the common ones.
        top: the same outside of layers.
        rows: puts rows into mlx-lm's order, packed ones too.
        columns: the same for columns.
        values: of tensors that are not packed, as mlx-lm has them.
        divided: parts whose rows are those of several modules, as many of each.
        unpacked: parts that never stay packed.
        rotary: whether rope_config describes its positions.
        wide_range: activations may exceed float16.
        body: where mlx-lm has the layers.
        nested: whether mlx-lm wants the entries of config.json below text_config.
    """

    model_type: str
    parts: Mapping[str, str] = field(default_factory=lambda: LLAMA)
    more: Callable[[GgufFile, str], Config] = lambda file, prefix: {}
    rows: Change = unchanged
    columns: Columns = lambda part, config: None
    values: Change = unchanged
    divided: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unpacked: tuple[str, ...] = ()
    wide_range: bool = False
    top: Mapping[str, str] = field(default_factory=lambda: TOP)
    rotary: bool = True
    body: str = "model"
    nested: bool = False

    def names(self, stored: str) -> tuple[str, ...]:
        """mlx-lm's names of a tensor: none if it is not needed, several if it holds several.

        Raises:
            ModelLoadError: a tensor that this table does not know.
        """
        part = part_of(stored)
        if part.rpartition(".")[0] in _LEFT_OUT:
            return ()
        found = _found(self.parts if layer_of(stored) is not None else self.top, part)
        if not found:
            module, _, suffix = part.rpartition(".")
            found = tuple(f"{one}.{suffix}" for one in self.divided.get(module, ()))
        if not found:
            raise ModelLoadError(
                f"the tensor {stored} is not known in GGUF files of this architecture"
            )
        layer = layer_of(stored)
        return found if layer is None else tuple(f"{self.body}.layers.{layer}.{n}" for n in found)


def layer_of(stored: str) -> int | None:
    """The number of a tensor's layer; None outside of layers."""
    return int(stored.split(".")[1]) if stored.startswith("blk.") else None


def part_of(stored: str) -> str:
    """A tensor's name within its layer, such as attn_q.weight."""
    return stored.split(".", 2)[2] if stored.startswith("blk.") else stored


def _found(names: Mapping[str, str], part: str) -> tuple[str, ...]:
    """By its whole name, or by that of its module."""
    if part in names:
        return (names[part],)
    module, _, suffix = part.rpartition(".")
    return (f"{names[module]}.{suffix}",) if module in names else ()


def largest(value: Any) -> Any:
    """Of a figure that may be one for each layer."""
    return max(value) if isinstance(value, list) else value


def each_layer(file: GgufFile, key: str, count: int) -> list[Any]:
    """A figure for each layer, also where the file has one for all.

    Raises:
        ModelLoadError: there is none, or not one for each.
    """
    value = file.need(key)
    found = value if isinstance(value, list) else [value] * count
    if len(found) != count:
        raise ModelLoadError(f"{file.path}: {key} has {len(found)} entries for {count} layers")
    return found
