"""Reads safetensors without MLX, so that any thread may, and says what is wrong with a file.

The format: 8 bytes of length, a JSON header, the data; see
https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mlx_parallm.errors import InvalidRequestError

Tensors = dict[str, np.ndarray]

_MOST_HEADER = 100 << 20
_DTYPES: dict[str, Any] = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_INTEGERS: dict[str, Any] = {"U32": "<u4", "U8": "u1", "I64": "<i8", "I32": "<i4"}
_EXPONENT = 0x7F80  # of a bfloat16; all of its bits are set where a number is not finite


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as it lies in a file.

    Attributes:
        kind: its type, as the format names it.
        values: of a bfloat16, which numpy lacks, the bits as uint16.
    """

    kind: str
    values: np.ndarray

    @property
    def is_float(self) -> bool:
        """Whether its numbers are no whole ones."""
        return self.kind in _DTYPES


def read_as_stored(data: bytes | memoryview) -> dict[str, Tensor]:
    """Every tensor of a safetensors file as it is; nothing is copied. Packed weights too.

    Raises:
        InvalidRequestError: truncated, damaged, of another type, or not finite.
    """
    view = memoryview(data)
    header, start = _header(view)
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            kind, raw = _raw(name, entry, view[start:], _DTYPES | _INTEGERS)
            _check_finite(name, kind, raw)
            found[name] = Tensor(kind, raw)
    return found


def header_of(path: Path) -> tuple[dict[str, Any], int]:
    """The entries of a safetensors file by the tensors' names, and where its data begin.

    Raises:
        InvalidRequestError: truncated or damaged.
    """
    with path.open("rb") as file:
        size = file.read(8)
        header = file.read(min(_MOST_HEADER, int.from_bytes(size, "little")))
    entries, start = _header(memoryview(size + header))
    return {name: entry for name, entry in entries.items() if name != "__metadata__"}, start


def read_one(path: Path, start: int, name: str, entry: Any) -> Tensor:
    """One tensor of a safetensors file, by its entry in the header.

    Raises:
        InvalidRequestError: truncated, damaged, of another type, or not finite.
    """
    try:
        first, stop = (int(n) for n in entry["data_offsets"])
        with path.open("rb") as file:
            file.seek(start + first)
            data = file.read(max(0, stop - first))
    except (KeyError, TypeError, ValueError, OSError):
        raise InvalidRequestError(f"{name[:200]}: the header's entry is damaged.") from None
    placed = {**entry, "data_offsets": [0, stop - first]}
    kind, raw = _raw(name, placed, memoryview(data), _DTYPES | _INTEGERS)
    _check_finite(name, kind, raw)
    return Tensor(kind, raw)


def read_tensors(data: bytes | memoryview) -> Tensors:
    """Every tensor of a safetensors file, as float32.

    Raises:
        InvalidRequestError: truncated, damaged, of another type than floats, or not finite.
    """
    view = memoryview(data)
    header, start = _header(view)
    return {
        name: _tensor(name, entry, view[start:])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _header(view: memoryview) -> tuple[dict[str, Any], int]:
    if len(view) < 8:
        raise InvalidRequestError("The weights are truncated: there is no safetensors header.")
    size = int.from_bytes(view[:8], "little")
    if size > min(_MOST_HEADER, len(view) - 8):
        raise InvalidRequestError("The weights are truncated, or no safetensors.")
    try:
        header = json.loads(bytes(view[8 : 8 + size]))
    except ValueError:
        raise InvalidRequestError("The weights are damaged: the header is not JSON.") from None
    if not isinstance(header, dict):
        raise InvalidRequestError("The weights are damaged: the header is no JSON object.")
    return header, 8 + size


def _tensor(name: str, entry: Any, data: memoryview) -> np.ndarray:
    kind, raw = _raw(name, entry, data, _DTYPES)
    values = _float32(raw, is_bfloat=kind == "BF16")
    if not np.isfinite(values).all():
        raise _not_finite(name)
    return values


def _raw(name: str, entry: Any, data: memoryview, dtypes: dict[str, Any]) -> tuple[str, np.ndarray]:
    """A tensor's type and its numbers as they lie in the file."""
    shown = name[:200]
    try:
        kind, shape = entry["dtype"], tuple(int(n) for n in entry["shape"])
        first, stop = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError):
        raise InvalidRequestError(f"{shown}: the header's entry is damaged.") from None
    if kind not in dtypes:
        raise InvalidRequestError(f"{shown}: its type is {kind}; floats are supported.")
    dtype = np.dtype(dtypes[kind])
    if not 0 <= first <= stop <= len(data):
        raise InvalidRequestError(f"{shown}: the weights are truncated.")
    if min(shape, default=0) < 0 or prod(shape) * dtype.itemsize != stop - first:
        raise InvalidRequestError(f"{shown}: its shape does not fit its bytes.")
    return kind, np.frombuffer(data[first:stop], dtype).reshape(shape)


def _check_finite(name: str, kind: str, raw: np.ndarray) -> None:
    if kind == "BF16":
        finite = bool(((raw & _EXPONENT) != _EXPONENT).all())
    else:
        finite = kind in _INTEGERS or bool(np.isfinite(raw).all())
    if not finite:
        raise _not_finite(name)


def _not_finite(name: str) -> InvalidRequestError:
    return InvalidRequestError(f"{name[:200]}: there are values that are not finite.")


def _float32(raw: np.ndarray, *, is_bfloat: bool) -> np.ndarray:
    if is_bfloat:
        return (raw.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):
        return raw.astype(np.float32)
