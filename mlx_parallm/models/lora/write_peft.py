"""Writes an adapter as PEFT reads it: adapter_config.json and adapter_model.safetensors.

The scale of each module is part of B, so that lora_alpha is the rank.
Source: https://github.com/huggingface/peft, utils/save_and_load.py (0.21).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlx_parallm.errors import UnsupportedError
from mlx_parallm.models.checkpoint.tensor_file import Tensors
from mlx_parallm.models.lora.delta import HEAD, Delta
from mlx_parallm.models.lora.modules import Modules
from mlx_parallm.models.lora.widen import check_low_rank_only, widened

_PREFIX = "base_model.model."
_EXPERT = re.compile(r"^(?P<home>.+)\.experts\.(?P<number>\d+)\.(?P<name>\w+)$")


def to_peft(
    deltas: Mapping[str, Delta], base: str, checkpoint: Iterable[str], modules: Modules
) -> tuple[dict[str, Any], Tensors]:
    """The config and the tensors of PEFT's adapter that changes the model the same.

    Args:
        base: what the config calls the base model.
        checkpoint: names of the base model's tensors, which Hugging Face's modules have too.

    Raises:
        UnsupportedError: PEFT has nothing like one of the changes, or the checkpoint no module
            of that name.
    """
    check_low_rank_only(deltas)
    rank = max(delta.rank for delta in deltas.values())
    owners = [name.removesuffix(".weight") for name in checkpoint if name.endswith(".weight")]
    tensors: Tensors = {}
    targets: dict[str, None] = {}
    for path, delta in deltas.items():
        for owner, part in _parts(path, delta, owners, modules):
            targets[owner] = None
            embeds = modules.is_embedding(path) and not path.endswith(HEAD)
            tensors |= _tensors(owner, part, rank, embeds=embeds)
    return _config(base, rank, list(targets), _has_magnitudes(deltas)), tensors


def _has_magnitudes(deltas: Mapping[str, Delta]) -> bool:
    found = {delta.magnitude is not None for delta in deltas.values()}
    if len(found) > 1:
        raise UnsupportedError("PEFT has DoRA for all modules, or for none.")
    return found == {True}


def _parts(
    path: str, delta: Delta, owners: list[str], modules: Modules
) -> Iterator[tuple[str, Delta]]:
    """PEFT's modules for one of ours: one, or each expert."""
    if path.endswith(HEAD):
        yield "lm_head", delta
    elif not modules.is_experts(path):
        yield _owner(path, owners, modules), delta
    else:
        yield from _experts(path, delta, owners, modules)


def _owner(path: str, owners: list[str], modules: Modules) -> str:
    found = [path] if path in owners else [name for name in owners if modules.find(name) == path]
    if len(found) != 1:
        raise UnsupportedError(f"{path}: the checkpoint has no single module of this name.")
    return found[0]


def _experts(
    path: str, delta: Delta, owners: list[str], modules: Modules
) -> Iterator[tuple[str, Delta]]:
    assert delta.a is not None and delta.b is not None
    count = 0
    for name in owners:
        match = _EXPERT.match(name)
        if match is None or modules.find_experts(match["home"], match["name"]) != path:
            continue
        number, count = int(match["number"]), count + 1
        yield name, Delta(delta.a[number], delta.b[number])
    if count != len(delta.a):
        raise UnsupportedError(f"{path}: the checkpoint does not have each expert by itself.")


def _tensors(owner: str, delta: Delta, rank: int, *, embeds: bool) -> Tensors:
    a, b = widened(delta, rank)
    name = _PREFIX + owner
    if embeds:
        if delta.magnitude is not None:
            raise UnsupportedError(f"{owner}: DoRA of embeddings differs between the formats.")
        return {f"{name}.lora_embedding_A": a.T, f"{name}.lora_embedding_B": b.T}
    tensors = {f"{name}.lora_A.weight": a.T, f"{name}.lora_B.weight": b.T}
    if delta.magnitude is not None:
        tensors[f"{name}.lora_magnitude_vector"] = delta.magnitude
    return tensors


def _config(base: str, rank: int, targets: list[str], dora: bool) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "use_rslora": False,
        "use_dora": dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "target_modules": targets,
        "modules_to_save": None,
        "inference_mode": True,
    }
