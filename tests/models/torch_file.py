"""Writes what torch.save writes, without torch."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

_KINDS = {mx.float32: "FloatStorage", mx.float16: "HalfStorage", mx.bfloat16: "BFloat16Storage"}


class _Storage:
    def __init__(self, kind: type, key: str, size: int) -> None:
        self.pid = ("storage", kind, key, "cpu", size)


class _Tensor:
    def __init__(self, rebuild: Any, *arguments: Any) -> None:
        self.rebuild, self.arguments = rebuild, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.rebuild, self.arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        return obj.pid if isinstance(obj, _Storage) else None


def save(file: Path, arrays: Mapping[str, mx.array], monkeypatch: pytest.MonkeyPatch) -> None:
    """A state dict; matrices are stored column by column, with strides that say so."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*_: Any) -> None: ...

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    kinds = {name: type(name, (), {"__module__": "torch"}) for name in _KINDS.values()}
    for name, kind in kinds.items():
        setattr(torch, name, kind)
    state, storages = OrderedDict(), {}
    for place, (name, array) in enumerate(arrays.items()):
        bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
        values = np.array(bits)
        stored = values.T if values.ndim == 2 else values
        storages[str(place)] = np.concatenate([np.zeros(3, values.dtype), stored.ravel()])
        stride = (1, values.shape[0]) if values.ndim == 2 else _strides(values.shape)
        storage = _Storage(kinds[_KINDS[array.dtype]], str(place), values.size + 3)
        state[name] = _Tensor(
            _rebuild_tensor_v2, storage, 3, values.shape, stride, False, OrderedDict()
        )
    buffer = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch)
        patch.setitem(sys.modules, "torch._utils", utils)
        _Pickler(buffer, protocol=2).dump(state)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", buffer.getvalue())
        for key, stored in storages.items():
            archive.writestr(f"archive/data/{key}", stored.tobytes())


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
