"""Forwards that mix adapters, without an engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.models.lora.reader import read_folder
from mlx_parallm.models.lora.routing import Routing
from mlx_parallm.models.lora.slots import AdapterSlots, Prepared


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


def some_tokens(rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(1).integers(3, 250, (rows, width))


def apart(one: mx.array, other: mx.array) -> float:
    """The largest difference of log-probabilities, in nats."""
    mine, theirs = (x - mx.logsumexp(x, axis=-1, keepdims=True) for x in (one, other))
    return float(np.array(mx.abs(mine - theirs).max()))
