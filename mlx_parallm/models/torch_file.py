"""Reads pytorch_model.bin without torch, and without running what is in it.

Such a file is a zip archive: a pickle of the tensors' names, shapes and strides, and a raw
file for each storage (torch.save since 1.6). Unpickling may call only what rebuilds
tensors; anything else in the pickle is an error.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.errors import ModelLoadError

# How each kind of storage is read; bfloat16 as its bits.
_STORAGES = {
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "DoubleStorage": "<f8",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


@dataclass(frozen=True)
class _Storage:
    kind: str
    values: np.ndarray


def load_torch_file(file: Path) -> dict[str, mx.array]:
    """The tensors of a state dict by name.

    Raises:
        ModelLoadError: not such a file, or there is something else than tensors in it.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            root = name.removesuffix("data.pkl")
            found = _Unpickler(archive, root).load()
    except (OSError, StopIteration, zipfile.BadZipFile) as error:
        raise ModelLoadError(f"{file}: not a zip archive of torch.save") from error
    except (pickle.UnpicklingError, KeyError, ValueError, TypeError, EOFError) as error:
        raise ModelLoadError(f"{file}: not a plain state dict: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(a, mx.array) for a in found.values()):
        raise ModelLoadError(f"{file}: there is something else than tensors in it")
    return dict(found)


class _Unpickler(pickle.Unpickler):
    """Knows tensors, their storages and dictionaries, and nothing else."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self._archive, self._root = archive, root
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _tensor,
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        if module == "torch" and name in _STORAGES:
            return name
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of a tensor")
        return known[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        if key not in self._storages:
            raw = self._archive.read(f"{self._root}data/{key}")
            self._storages[key] = _Storage(kind, np.frombuffer(raw, _STORAGES[kind]))
        return self._storages[key]


def _tensor(
    storage: _Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> mx.array:
    values = storage.values
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if offset < 0 or min(stride, default=0) < 0 or (0 not in shape and last >= len(values)):
        raise ValueError("a tensor reaches beyond its storage")
    steps = [step * values.itemsize for step in stride]
    view = np.lib.stride_tricks.as_strided(values[offset:], shape, steps, writeable=False)
    array = mx.array(np.ascontiguousarray(view).reshape(shape))
    return array.view(mx.bfloat16) if storage.kind == "BFloat16Storage" else array
