"""From an adapter's folder, or its bytes, to what it changes. Any thread may read.

A folder has adapter_config.json beside adapter_model.safetensors (PEFT) or
adapters.safetensors (mlx-lm).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_parallm.errors import InvalidRequestError, NotFoundError
from mlx_parallm.models.checkpoint.tensor_file import read_tensors
from mlx_parallm.models.lora import mlx_lm_format, peft_format
from mlx_parallm.models.lora.check import check
from mlx_parallm.models.lora.delta import AdapterWeights
from mlx_parallm.models.lora.modules import Modules

CONFIG = "adapter_config.json"
_WEIGHTS = ("adapter_model.safetensors", "adapters.safetensors")


def read_folder(folder: Path, modules: Modules, max_rank: int) -> AdapterWeights:
    """The adapter in a folder, checked against the model.

    Raises:
        NotFoundError: there is no adapter there.
        InvalidRequestError, UnsupportedError: it cannot be used with this model.
    """
    config = read_config(folder)
    file = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if file is None:
        raise NotFoundError(f"{folder}: there is neither {' nor '.join(_WEIGHTS)} in this folder.")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{file}: {error.strerror or error}.") from None
    return read_bytes(config, data, modules, max_rank)


def read_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json.

    Raises:
        NotFoundError: it is not there.
        InvalidRequestError: it is not JSON.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise NotFoundError(f"{folder}: there is no {CONFIG} in this folder.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise InvalidRequestError(f"{file}: not readable as JSON.") from None
    if not isinstance(config, dict):
        raise InvalidRequestError(f"{file}: this is no JSON object.")
    return config


def read_bytes(
    config: Mapping[str, Any], data: bytes, modules: Modules, max_rank: int
) -> AdapterWeights:
    """The adapter in a safetensors file, checked against the model.

    Raises:
        InvalidRequestError, UnsupportedError: it cannot be used with this model.
    """
    if peft_format.is_peft(config):
        read = peft_format.deltas_of
    elif mlx_lm_format.is_mlx_lm(config):
        read = mlx_lm_format.deltas_of
    else:
        raise InvalidRequestError(f"{CONFIG} is neither PEFT's nor mlx-lm's.")
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(data)
    deltas = read(config, read_tensors(data), modules)
    weights = AdapterWeights(deltas, digest.hexdigest()[:32])
    check(weights, modules, max_rank)
    return weights
