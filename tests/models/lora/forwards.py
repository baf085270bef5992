"""Forwards that mix adapters, without an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from mlx_parallm.models.lora.reader import read_folder
from mlx_parallm.models.lora.routing import Routing
from mlx_parallm.models.lora.slots import AdapterSlots, Prepared, plain_weight

# How bases are packed: a part of their names -> MLX's mode, and the bits of a weight.
PACKINGS = {"packed 8": ("affine", 8), "packed mxfp4": ("mxfp4", 4), "packed": ("affine", 4)}


def slots_of(model: Any, folders: Sequence[Path]) -> AdapterSlots:
    """The model's slots, filled with these adapters from slot 1 on."""
    slots = AdapterSlots(model, Routing(), 8)
    for number, folder in enumerate(folders, start=1):
        fill(slots, number, folder)
    return slots


def fill(slots: AdapterSlots, number: int, folder: Path) -> None:
    prepared: Prepared = {}
    for step in slots.preparing(read_folder(folder, slots.modules, 16), prepared):
        step()
    slots.put(number, prepared)


def mixed(model: Any, slots: AdapterSlots, tokens: np.ndarray, lanes: Sequence[int]) -> mx.array:
    """(B, T, V): each row with the adapter of its lane."""
    with slots.routing.over(np.array(lanes)):
        logits: mx.array = model(mx.array(tokens))
    mx.eval(logits)
    return logits


def pack(model: Any, base: str) -> Any:
    """The model, quantised in place where its base's name says so."""
    found = next((name for name in PACKINGS if base.startswith(name)), None)
    if found is not None:
        mode, bits = PACKINGS[found]
        nn.quantize(model, 32, bits, mode=mode, class_predicate=_fits)
    return model


def _fits(path: str, module: Any) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


def plain_parameters(model: Any) -> dict[str, mx.array]:
    """All parameters by name, those of packed modules unpacked."""
    plain: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    for path, module in model.named_modules():
        if hasattr(module, "bits"):
            for part in ("scales", "biases"):
                plain.pop(f"{path}.{part}", None)
            plain[f"{path}.weight"] = plain_weight(module)
    return plain


Note = Callable[[str, object], None]


def note(record: Note, kind: str, file: str, base: str, oracle: str, error: float) -> None:
    """A line of the table that scripts/adapter_table.py makes of the tests' results."""
    record("adapter", "|".join((kind, file, base, oracle, f"{error:.1e}")))


def some_tokens(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(3, 250, (rows, width))


def apart(one: mx.array, other: mx.array) -> float:
    """The largest difference of log-probabilities, in nats."""
    mine, theirs = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (one, other))
    return float(np.array(mx.abs(mine - theirs).max()))
