"""mlx-lm's adapters: `lora_a`, `lora_b` and DoRA's `m`, as mlx_lm.lora writes them.

Source: mlx_lm/tuner/lora.py, dora.py, utils.py (0.32).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.models.checkpoint.tensor_file import Tensors
from mlx_parallm.models.lora.delta import HEAD, Delta
from mlx_parallm.models.lora.modules import Modules

_KINDS = ("lora", "dora", "full")
_LOW_RANK = {"lora_a": "a", "lora_b": "b", "m": "m"}


def is_mlx_lm(config: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is mlx-lm's."""
    return "lora_parameters" in config or config.get("fine_tune_type") in _KINDS


def deltas_of(config: Mapping[str, Any], tensors: Tensors, modules: Modules) -> dict[str, Delta]:
    """What the tensors change of each module.

    Raises:
        InvalidRequestError: the config or a name in the file is not usable.
        UnsupportedError: another kind of fine-tuning.
    """
    kind = config.get("fine_tune_type", "lora")
    if kind not in _KINDS:
        raise UnsupportedError(f"fine_tune_type {str(kind)[:50]!r} is not supported.")
    parts: dict[str, dict[str, np.ndarray]] = {}
    deltas: dict[str, Delta] = {}
    for name, array in tensors.items():
        owner, _, last = name.rpartition(".")
        path = modules.find(owner)
        if path is None:
            raise InvalidRequestError(f"{name[:200]}: the model has no such module.")
        if kind != "full" and last in _LOW_RANK:
            parts.setdefault(path, {})[_LOW_RANK[last]] = array
        else:
            deltas.setdefault(path, Delta()).replaced[last] = array
    for path, found in parts.items():
        for place, delta in _low_rank(path, found, _scale(config), modules).items():
            if place in deltas:
                delta.replaced = deltas[place].replaced
            deltas[place] = delta
    return deltas


def _scale(config: Mapping[str, Any]) -> float:
    parameters = config.get("lora_parameters")
    if isinstance(parameters, Mapping):
        scale, alpha, rank = (parameters.get(name) for name in ("scale", "alpha", "rank"))
        if isinstance(scale, int | float):
            return float(scale)
        if isinstance(alpha, int | float) and isinstance(rank, int) and rank > 0:
            return alpha / rank  # as early versions wrote it
    raise InvalidRequestError("adapter_config.json: lora_parameters has no scale.")


def _low_rank(
    path: str, found: dict[str, np.ndarray], scale: float, modules: Modules
) -> dict[str, Delta]:
    a, b, m = (found.get(name) for name in "abm")
    if a is None or b is None:
        return {path: Delta(a, b)}  # which is refused
    if modules.is_experts(path):
        return {path: Delta(a.swapaxes(-1, -2), b.swapaxes(-1, -2) * scale, m)}
    deltas = {path: Delta(a, b * scale, m, by_token=m is not None and modules.is_embedding(path))}
    if modules.is_embedding(path) and modules.has_tied_head:
        deltas[path + HEAD] = Delta(b.swapaxes(-1, -2), a.swapaxes(-1, -2) * scale, m)
    return deltas
