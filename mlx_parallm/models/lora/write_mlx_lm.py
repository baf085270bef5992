"""Writes an adapter as mlx-lm reads it: adapter_config.json and adapters.safetensors.

mlx-lm has one rank and one scale for all modules: narrower matrices are filled up with zeros,
and the scale of each is part of B. Source: mlx_lm/tuner/utils.py, load_adapters (0.32).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_parallm.errors import UnsupportedError
from mlx_parallm.models.checkpoint.tensor_file import Tensors
from mlx_parallm.models.lora.delta import HEAD, Delta
from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.widen import check_low_rank_only, widened

_TOLERANCE = 1e-6


def to_mlx_lm(
    deltas: Mapping[str, Delta], model: Any, modules: Modules
) -> tuple[dict[str, Any], Tensors]:
    """The config and the tensors of mlx-lm's adapter that changes the model the same.

    Args:
        model: mlx-lm's; only its modules are looked at.

    Raises:
        UnsupportedError: mlx-lm has nothing like one of the changes.
    """
    check_low_rank_only(deltas)
    rank = max(delta.rank for delta in deltas.values())
    dora = any(delta.magnitude is not None for delta in deltas.values())
    tensors: Tensors = {}
    for path, delta in deltas.items():
        if path.endswith(HEAD):
            _check_tied(deltas, path)  # mlx-lm's embedding changes the head too
            continue
        _check_kind(path, delta, modules, dora=dora, has_head=path + HEAD in deltas)
        a, b = widened(delta, rank)
        if modules.is_experts(path):
            a, b = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
        tensors |= {f"{path}.lora_a": a, f"{path}.lora_b": b}
        if delta.magnitude is not None:
            tensors[f"{path}.m"] = delta.magnitude
    return _config([path for path in deltas if not path.endswith(HEAD)], model, rank, dora), tensors


def _config(paths: list[str], model: Any, rank: int, dora: bool) -> dict[str, Any]:
    names = {id(module): path for path, module in model.named_modules()}
    blocks = [names[id(block)] for block in model.layers]
    keys, first = set(), len(blocks)
    for path in paths:
        number = next((n for n, block in enumerate(blocks) if path.startswith(f"{block}.")), None)
        if number is None:
            keys.add(path)
        else:
            keys.add(path.removeprefix(f"{blocks[number]}."))
            first = min(first, number)
    return {
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": max(1, len(blocks) - first),
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": sorted(keys)},
    }


def _check_kind(path: str, delta: Delta, modules: Modules, *, dora: bool, has_head: bool) -> None:
    if dora != (delta.magnitude is not None):
        raise UnsupportedError(f"{path}: mlx-lm has DoRA for all modules, or for none.")
    if not modules.is_embedding(path):
        return
    if delta.magnitude is not None and not delta.by_token:
        raise UnsupportedError(f"{path}: mlx-lm's DoRA of embeddings has a norm for each token.")
    if modules.has_tied_head and not has_head:
        raise UnsupportedError(
            f"{path}: the model's embedding is its head too; mlx-lm can change both only."
        )


def _check_tied(deltas: Mapping[str, Delta], path: str) -> None:
    """The embedding has to change in the same way."""
    own, other = deltas[path], deltas.get(path.removesuffix(HEAD))
    same = (
        other is not None
        and own.a is not None
        and own.b is not None
        and other.a is not None
        and other.b is not None
        and own.a.shape == other.b.shape[::-1]
        and np.allclose(own.a @ own.b, (other.a @ other.b).T, rtol=1e-4, atol=_TOLERANCE)
    )
    if not same:
        raise UnsupportedError(
            f"{path.removesuffix(HEAD)}: the model's head is its embedding too; "
            "mlx-lm can change both only, and in the same way."
        )
