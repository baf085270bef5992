"""PEFT's adapters: LoRA, rsLoRA and DoRA, with patterns, saved modules, biases and experts.

Source: https://github.com/huggingface/peft, tuners/lora and utils/save_and_load.py (0.21).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.models.checkpoint.tensor_file import Tensors
from mlx_parallm.models.lora.delta import Delta
from mlx_parallm.models.lora.modules import Modules

# What changes the forward in a way that is not built here, where it is set.
_REFUSED = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication"),
    *("monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora"),
    "use_qalora",
)
_PREFIX = "base_model.model."
_PART = re.compile(
    r"^(?P<owner>.+?)\.(?:"
    r"lora_(?P<embedding>embedding_)?(?P<part>[AB])(?:\.(?!weight|bias)\w+)?(?:\.(?P<of>weight|bias))?"
    r"|lora_(?P<magnitude>magnitude_vector)(?:\.\w+)*)$"
)
_SAVED = re.compile(r"\.(modules_to_save|original_module|base_layer)(\.default)?(?=\.)")
_EXPERT = re.compile(r"^(?P<home>.+)\.experts\.(?P<number>\d+)\.(?P<name>\w+)$")


@dataclass
class _Found:
    """The low-rank parts of one of PEFT's modules."""

    a: np.ndarray | None = None
    b: np.ndarray | None = None
    bias: np.ndarray | None = None
    magnitude: np.ndarray | None = None


@dataclass
class _Stacked:
    """The parts of a mixture's experts, by their number."""

    experts: dict[int, Delta] = field(default_factory=dict)


def is_peft(config: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is PEFT's."""
    return "peft_type" in config


def deltas_of(config: Mapping[str, Any], tensors: Tensors, modules: Modules) -> dict[str, Delta]:
    """What the tensors change of each module.

    Raises:
        InvalidRequestError: the config or a name in the file is not usable.
        UnsupportedError: another kind of adapter, or an option that is not built.
    """
    _check_config(config)
    low_rank: dict[str, _Found] = {}
    deltas: dict[str, Delta] = {}
    for name, array in tensors.items():
        owner, found = name.removeprefix(_PREFIX), _PART.match(name.removeprefix(_PREFIX))
        if found is None:
            _replace(deltas, owner, array, config, modules)
        else:
            _keep(low_rank.setdefault(found["owner"], _Found()), found, array)
    stacked: dict[str, _Stacked] = {}
    for owner, parts in low_rank.items():
        delta = _delta(parts, _scale(config, owner, parts))
        expert = _EXPERT.match(owner)
        if expert is None:
            _merge(deltas, _path(owner, modules), delta)
            continue
        path = modules.find_experts(expert["home"], expert["name"])
        if path is None:
            raise InvalidRequestError(f"{owner[:200]}: the model has no such experts.")
        stacked.setdefault(path, _Stacked()).experts[int(expert["number"])] = delta
    for path, experts in stacked.items():
        _merge(deltas, path, _stack(path, experts, modules))
    return deltas


def _check_config(config: Mapping[str, Any]) -> None:
    if config["peft_type"] != "LORA":
        raise UnsupportedError(f"peft_type {str(config['peft_type'])[:50]!r} is not supported.")
    for name in _REFUSED:
        if config.get(name):
            raise UnsupportedError(f"adapter_config.json: {name} is not supported.")


def _path(name: str, modules: Modules) -> str:
    path = modules.find(name)
    if path is None:
        raise InvalidRequestError(f"{name[:200]}: the model has no such module.")
    return path


def _replace(
    deltas: dict[str, Delta],
    name: str,
    array: np.ndarray,
    config: Mapping[str, Any],
    modules: Modules,
) -> None:
    owner, _, parameter = _SAVED.sub("", name).rpartition(".")
    if config.get("fan_in_fan_out") and parameter == "weight" and array.ndim == 2:
        raise UnsupportedError(f"{name[:200]}: whole weights of Conv1D are not supported.")
    deltas.setdefault(_path(owner, modules), Delta()).replaced[parameter] = array


def _keep(parts: _Found, found: re.Match[str], array: np.ndarray) -> None:
    if found["magnitude"]:
        parts.magnitude = array
    elif found["of"] == "bias":
        parts.bias = array
    elif found["part"] == "A":
        parts.a = array.swapaxes(-1, -2)
    else:
        parts.b = array.swapaxes(-1, -2)


def _scale(config: Mapping[str, Any], owner: str, parts: _Found) -> float:
    """alpha / r, or alpha / sqrt(r); a pattern is matched with the end of the name."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if _matches(pattern, owner):
            alpha = value
            break
    rank = 0 if parts.b is None else parts.b.shape[-2]
    if not isinstance(alpha, int | float) or not rank:
        raise InvalidRequestError(f"{owner[:200]}: there is no usable lora_alpha or rank.")
    return float(alpha / (rank**0.5 if config.get("use_rslora") else rank))


def _matches(pattern: str, owner: str) -> bool:
    try:
        return re.match(rf"(.*\.)?({pattern})$", owner) is not None
    except re.error:
        raise InvalidRequestError(f"alpha_pattern: {pattern[:100]!r} is no pattern.") from None


def _delta(parts: _Found, scale: float) -> Delta:
    b = None if parts.b is None else parts.b * np.float32(scale)
    added = None if parts.bias is None else parts.bias * np.float32(scale)
    return Delta(parts.a, b, parts.magnitude, added=added)


def _merge(deltas: dict[str, Delta], path: str, delta: Delta) -> None:
    """Low-rank parts beside replaced parameters of the same module."""
    if path in deltas:
        delta.replaced = deltas[path].replaced
    deltas[path] = delta


def _stack(path: str, stacked: _Stacked, modules: Modules) -> Delta:
    """One delta of all experts; those that the file leaves out change nothing."""
    experts = stacked.experts
    size = modules[path].num_experts
    if max(experts) >= size:
        raise InvalidRequestError(
            f"{path[:200]}: there are {size} experts, not {max(experts) + 1}."
        )
    if any(d.magnitude is not None or d.added is not None for d in experts.values()):
        raise UnsupportedError(f"{path[:200]}: DoRA and biases of experts are not supported.")
    rank = max(delta.rank for delta in experts.values())
    shapes = set(_outer_shapes(experts))
    if len(shapes) != 1:
        raise InvalidRequestError(f"{path[:200]}: the experts have different shapes.")
    width, out = shapes.pop()
    a, b = np.zeros((size, width, rank), np.float32), np.zeros((size, rank, out), np.float32)
    for number, delta in experts.items():
        assert delta.a is not None and delta.b is not None
        a[number, :, : delta.rank], b[number, : delta.rank] = delta.a, delta.b
    return Delta(a, b)


def _outer_shapes(experts: Mapping[int, Delta]) -> Iterator[tuple[int, int]]:
    for number, delta in experts.items():
        if delta.a is None or delta.b is None or delta.a.shape[-1] != delta.rank:
            raise InvalidRequestError(f"expert {number}: one of its two matrices is wrong.")
        yield delta.a.shape[0], delta.b.shape[1]
