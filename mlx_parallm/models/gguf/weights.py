"""Tensors of a GGUF file as mlx-lm's weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.architecture import Architecture, layer_of, part_of
from mlx_parallm.models.gguf.blocks import GROUP, can_pack, pack, reordered
from mlx_parallm.models.gguf.reader import GgufFile, GgufTensor

_FLOATS = (Kind.F32, Kind.F16, Kind.BF16)
_FLOAT16_MAX = 65504.0


@dataclass
class Conversion:
    """What became of the tensors.

    Attributes:
        quantization: config.json's entry; empty where nothing is packed.
        rounded: type -> the largest relative error of a tensor's values (root mean square).
    """

    quantization: dict[str, Any] = field(default_factory=dict)
    rounded: dict[str, float] = field(default_factory=dict)


def weights_of(
    file: GgufFile, kind: Architecture, config: dict[str, Any], report: Conversion
) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays for mlx-lm, one tensor at a time; `report` is filled on the way.

    Raises:
        ModelLoadError: a tensor or a type of block that is not known.
    """
    for tensor in file.tensors():
        if (layer_of(tensor.name) or 0) >= config["num_hidden_layers"]:
            continue  # layers that only guess tokens further ahead
        names = kind.names(tensor.name)
        rows = kind.rows(part_of(tensor.name), np.asarray(tensor.data), config)
        shape = (*rows.shape[:-1], tensor.shape[-1])
        parts = _divided(replace(tensor, shape=shape, data=rows), len(names))
        for name, part in zip(names, parts, strict=True):
            packs = can_pack(tensor.kind) and part_of(tensor.name) not in kind.unpacked
            if packs and name.endswith(".weight"):
                yield from _packed(part, name, kind, config, report)
            else:
                yield name, _plain(part, kind, config, report)


def _divided(tensor: GgufTensor, count: int) -> list[GgufTensor]:
    """Its rows, or the numbers of a vector, in so many equal parts."""
    if count < 2:
        return [tensor] * count
    axis = max(len(tensor.shape) - 2, 0)
    shape = list(tensor.shape)
    shape[axis] //= count
    parts = np.split(np.asarray(tensor.data), count, axis=axis)
    return [replace(tensor, shape=tuple(shape), data=part) for part in parts]


def _packed(
    tensor: GgufTensor, name: str, kind: Architecture, config: dict[str, Any], report: Conversion
) -> Iterator[tuple[str, np.ndarray]]:
    packed = pack(tensor.data, tensor.kind)
    order = kind.columns(part_of(tensor.name), config)
    if order is not None:
        packed = packed.with_columns(order)
    if packed.error:
        report.rounded[tensor.kind.name] = max(
            packed.error, report.rounded.get(tensor.kind.name, 0.0)
        )
    module = name.removesuffix(".weight")
    entry = {"group_size": GROUP, "bits": packed.bits, "mode": packed.mode}
    report.quantization[module] = entry
    for default, value in entry.items():  # for whoever wants one figure for all
        report.quantization.setdefault(default, value)
    yield name, packed.weight
    yield f"{module}.scales", packed.scales
    if packed.biases is not None:
        yield f"{module}.biases", packed.biases


def _plain(
    tensor: GgufTensor, kind: Architecture, config: dict[str, Any], report: Conversion
) -> np.ndarray:
    try:
        values = dequantize(tensor.data, tensor.kind).reshape(tensor.shape).astype(np.float32)
    except NotImplementedError as error:
        raise ModelLoadError(f"weights of the type {tensor.kind.name} are not supported") from error
    part = part_of(tensor.name)
    order = kind.columns(part, config)
    if order is not None:
        values = reordered(values, order)
    values = kind.values(part, values, config)
    if tensor.kind is Kind.F32 and values.ndim > 1:
        return values
    return _halved(values, tensor.kind, report)


def _halved(values: np.ndarray, kind: Kind, report: Conversion) -> np.ndarray:
    """As float16 where the range allows it, and where that rounds, by how much."""
    if np.abs(values).max(initial=0) > _FLOAT16_MAX:
        return values
    half = values.astype(np.float16)
    error = float(np.linalg.norm(half - values) / max(float(np.linalg.norm(values)), 1e-30))
    if kind in _FLOATS and error:
        return values
    if error:
        report.rounded[kind.name] = max(error, report.rounded.get(kind.name, 0.0))
    return half
