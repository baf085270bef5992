"""Shapes of a tiny file's tensors: those of mlx-lm's model, by llama.cpp's names.

llama.cpp refuses a file that lacks a tensor, has one too many or one of another shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from mlx_parallm.models.gguf.architecture import Architecture
from mlx_parallm.models.gguf.architectures import architecture_of, config_of
from mlx_parallm.models.gguf.reader import GgufFile
from tests.models import tiny_gguf
from tests.models.tiny_gguf import Shapes


def shapes_of(
    folder: Path, architecture: str, values: dict[str, Any], present: Sequence[str] = ()
) -> Shapes:
    """Of all tensors of a file with this metadata; `present`: names of some that it could lack."""
    empty = tiny_gguf.write(
        folder / "empty.gguf",
        architecture,
        values=values,
        shapes=dict.fromkeys(present, (1,)),
    )
    file = GgufFile(empty)
    config, kind = config_of(file), architecture_of(file)
    model_class: Any
    args_class: Any
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    parameters: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return {_stored(kind, name): _shape(name, array) for name, array in parameters.items()}


def _stored(kind: Architecture, name: str) -> str:
    layers = f"{kind.body}.layers."
    if not name.startswith(layers):
        return _part(kind.top, name)
    number, _, rest = name.removeprefix(layers).partition(".")
    return f"blk.{number}.{_part(kind.parts, rest)}"


def _part(names: Any, name: str) -> str:
    backwards = {theirs: ours for ours, theirs in names.items()}
    if name in backwards:
        return str(backwards[name])
    module, _, suffix = name.rpartition(".")
    return f"{backwards[module]}.{suffix}"


def _shape(name: str, array: mx.array) -> tuple[int, ...]:
    """The converter leaves out axes of one."""
    if "conv" in name and array.ndim == 3:
        return tuple(array.shape[:2])
    return (array.shape[1],) if name.endswith("shared_expert_gate.weight") else tuple(array.shape)
