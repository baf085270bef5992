"""Checkpoints of trainings: weights, the optimizer's state and where a training was."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

Clock = TypeVar("Clock")


def store(model: nn.Module, optimizer: Any, clock: Any, folder: Path) -> None:
    """Write beside and rename, so that an interruption leaves the older state whole.

    Args:
        clock: a dataclass of plain values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trees: dict[str, Any] = {"model": model.parameters(), "optimizer": optimizer.state}
    state = {f"{tree}.{name}": value for tree in trees for name, value in flat(trees[tree])}
    new = folder / "new.safetensors"
    mx.save_safetensors(str(new), state, metadata={"clock": json.dumps(asdict(clock))})
    new.replace(folder / "state.safetensors")


def restore(model: nn.Module, optimizer: Any, folder: Path, kind: type[Clock]) -> Clock | None:
    """The clock of what was stored, with model and optimizer as they were; None: nothing was."""
    path = folder / "state.safetensors"
    if not path.exists():
        return None
    loaded: Any = mx.load(str(path), return_metadata=True)
    state, metadata = loaded
    model.load_weights(_under("model.", state))
    optimizer.state = tree_unflatten(_under("optimizer.", state))
    return kind(**json.loads(metadata["clock"]))


def flat(tree: Any) -> list[tuple[str, mx.array]]:
    """The arrays of a tree, by their paths."""
    found: Any = tree_flatten(tree)
    return list(found)


def _under(prefix: str, state: dict[str, mx.array]) -> list[tuple[str, mx.array]]:
    return [
        (name[len(prefix) :], value) for name, value in state.items() if name.startswith(prefix)
    ]
