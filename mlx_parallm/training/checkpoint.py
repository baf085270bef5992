"""Checkpoints: an adapter that any tool of mlx-lm reads, beside what a training goes on from.

    OUTPUT/adapter_config.json, adapters.safetensors          the newest
    OUTPUT/checkpoints/000040/...                             the same of step 40, and
                              optimizer.safetensors, training.json

A folder appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors.numpy import save

from mlx_parallm.errors import TrainingError

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
_OPTIMIZER, _TRAINING = "optimizer.safetensors", "training.json"
_FOLDER = "checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """What a training goes on from.

    Attributes:
        step: steps that are done.
        config: adapter_config.json; adapter: the adapter's safetensors file.
        state: of the optimizer, by name.
        origin: what has to be the same for it to go on: model, data, seed.
    """

    step: int
    config: Mapping[str, Any]
    adapter: bytes
    state: Mapping[str, np.ndarray]
    origin: Mapping[str, Any]


def write(output: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Save a checkpoint, and the adapter as the output; returns the checkpoint's folder.

    Args:
        keep: older ones that stay.

    Raises:
        TrainingError: the disk refuses.
    """
    folder = output / _FOLDER / f"{checkpoint.step:06d}"
    try:
        _write_folder(folder, _files_of(checkpoint))
        write_adapter(output, checkpoint.config, checkpoint.adapter)
        for old in sorted(_numbered(output))[:-keep]:
            shutil.rmtree(output / _FOLDER / f"{old:06d}")
    except OSError as error:
        raise TrainingError(f"{folder}: the checkpoint cannot be written: {error}") from error
    return folder


def write_adapter(folder: Path, config: Mapping[str, Any], adapter: bytes) -> None:
    """An adapter's two files, each of them whole."""
    _replace(folder / CONFIG, _json(dict(config)))
    _replace(folder / WEIGHTS, adapter)


def newest(output: Path) -> Checkpoint:
    """The newest checkpoint of a run.

    Raises:
        TrainingError: there is none, or it is damaged.
    """
    numbers = sorted(_numbered(output))
    if not numbers:
        raise TrainingError(f"{output}: there is no checkpoint to go on from.", param="resume")
    folder = output / _FOLDER / f"{numbers[-1]:06d}"
    try:
        training = json.loads((folder / _TRAINING).read_text(encoding="utf-8"))
        state: dict[str, mx.array] = mx.load(str(folder / _OPTIMIZER))  # type: ignore[assignment]
        return Checkpoint(
            training["step"],
            json.loads((folder / CONFIG).read_text(encoding="utf-8")),
            (folder / WEIGHTS).read_bytes(),
            {name: np.array(array) for name, array in state.items()},
            training["origin"],
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TrainingError(f"{folder}: not readable: {error!r}", param="resume") from error


def has_any(output: Path) -> bool:
    """Whether there is a checkpoint in a folder."""
    return bool(_numbered(output))


def _numbered(output: Path) -> list[int]:
    return [int(f.name) for f in (output / _FOLDER).glob("*") if f.name.isdigit()]


def _files_of(checkpoint: Checkpoint) -> dict[str, bytes]:
    training = {"step": checkpoint.step, "origin": dict(checkpoint.origin)}
    return {
        CONFIG: _json(dict(checkpoint.config)),
        WEIGHTS: checkpoint.adapter,
        _OPTIMIZER: save(dict(checkpoint.state)),
        _TRAINING: _json(training),
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name, data in files.items():
        (part / name).write_bytes(data)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def _replace(file: Path, data: bytes) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(data)
    part.replace(file)
