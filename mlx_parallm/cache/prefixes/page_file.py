"""What is in a page's file: the safetensors format, with a checksum.

    8 bytes header length | JSON header | data

See https://github.com/huggingface/safetensors#format. The header's metadata names
the model and the page, and has the data's CRC-32: files are not synced to disk
one by one, so after a power failure one can have the right size and no contents.
Any safetensors reader can load the files. encode and decode do not use mlx: files
are written on a thread that must not touch it.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.prefixes.pages import PagedKVCache

FORMAT = "mlx_parallm-page-1"
_MAX_HEADER = 1 << 20
_DTYPES: dict[str, mx.Dtype] = {
    "BOOL": mx.bool_,
    "U8": mx.uint8,
    "I8": mx.int8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "F32": mx.float32,
    "U64": mx.uint64,
    "I64": mx.int64,
}
_NAMES = {str(dtype): name for name, dtype in _DTYPES.items()}
_SIZES = {name: dtype.size for name, dtype in _DTYPES.items()}


class PageFileError(ValueError):
    """Bytes that are not the file of the page that was asked for."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor in a file; dtype is safetensors' name for it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return prod(self.shape) * _SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Record:
    """Tensors as bytes.

    Attributes:
        layout: the tensors, in the order of their data.
        data: all tensors' bytes, without gaps.
        note: free text beside them.
    """

    layout: tuple[TensorSpec, ...]
    data: bytes
    note: str = ""


def encode(record: Record, model: str, key: str) -> bytes:
    """The file of a record."""
    header: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "model": model,
            "key": key,
            "crc32": f"{zlib.crc32(record.data):08x}",
            "note": record.note,
        }
    }
    start = 0
    for spec in record.layout:
        stop = start + spec.nbytes
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": spec.shape,
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers may map the data, which then must be aligned
    return struct.pack("<Q", len(text)) + text + record.data


def decode(file: bytes, model: str, key: str) -> Record:
    """The record in a file.

    Raises:
        PageFileError: torn, foreign, another model's, or another page's.
    """
    header, data = _split(file)
    metadata = header.pop("__metadata__", None)
    wanted = {"format": FORMAT, "model": model, "key": key, "crc32": f"{zlib.crc32(data):08x}"}
    if not isinstance(metadata, dict):
        raise PageFileError("it is not a page")
    for name, value in wanted.items():
        if metadata.get(name) != value:
            raise PageFileError(f"its {name} is {str(metadata.get(name))[:80]!r}, not {value!r}")
    layout = []
    start = 0
    for name, entry in header.items():
        spec = _tensor_spec(name, entry)
        if entry.get("data_offsets") != [start, start + spec.nbytes]:
            raise PageFileError(f"tensor {name[:80]!r} does not follow the one before it")
        start += spec.nbytes
        layout.append(spec)
    if start != len(data):
        raise PageFileError(f"{len(data)} bytes of data, not {start}")
    return Record(tuple(layout), data, str(metadata.get("note", "")))


def _split(file: bytes) -> tuple[dict[str, Any], bytes]:
    if len(file) < 8:
        raise PageFileError(f"{len(file)} bytes only")
    (length,) = struct.unpack_from("<Q", file)
    if length > min(_MAX_HEADER, len(file) - 8):
        raise PageFileError("its header is cut off")
    try:
        header = json.loads(file[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise PageFileError("its header is not JSON") from error
    if not isinstance(header, dict):
        raise PageFileError("its header is not an object")
    return header, file[8 + length :]


def _tensor_spec(name: str, entry: Any) -> TensorSpec:
    shape = entry.get("shape") if isinstance(entry, dict) else None
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise PageFileError(f"tensor {name[:80]!r} has no shape")
    if str(entry.get("dtype")) not in _SIZES:
        raise PageFileError(f"tensor {name[:80]!r} is of an unknown type")
    return TensorSpec(name, entry["dtype"], tuple(shape))


# Pages and snapshots as bytes, on the thread that owns mlx


def page_layout(cache: PagedKVCache) -> tuple[TensorSpec, ...]:
    """The tensors of one page: K and V of each layer, (kv_heads, page_size, dim)."""
    dtype = _NAMES[str(cache.dtype)]
    layout = []
    for number, spec in enumerate(cache.layers):
        for kind, dim in (("k", spec.k_dim), ("v", spec.v_dim)):
            shape = (spec.kv_heads, cache.page_size, dim)
            layout.append(TensorSpec(f"layers.{number}.{kind}", dtype, shape))
    return tuple(layout)


def pack_pages(cache: PagedKVCache, page_ids: Sequence[int]) -> list[Record]:
    """The pages' contents, one record each."""
    layout, count = page_layout(cache), len(page_ids)
    if not layout or not count:
        return [Record((), b"") for _ in page_ids]
    planes = [plane for keys_values in cache.gather_all(page_ids) for plane in keys_values]
    columns = [
        plane.reshape(spec.shape[0], count, *spec.shape[1:]).swapaxes(0, 1).reshape(count, -1)
        for spec, plane in zip(layout, planes, strict=True)
    ]
    # Few operations for all pages: some a page and layer would take milliseconds each page.
    rows = np.array(mx.concatenate(columns, axis=1).view(mx.uint8))
    return [Record(layout, row.tobytes()) for row in rows]


def unpack_pages(cache: PagedKVCache, records: Sequence[Record]) -> list[Any]:
    """K and V of each layer for PagedKVCache.write_all, of records in page order."""
    layout, count = page_layout(cache), len(records)
    if not layout:
        return []
    joined = np.frombuffer(b"".join(record.data for record in records), np.uint8)
    rows = mx.array(joined.reshape(count, -1)).view(cache.dtype)
    planes, start = [], 0
    for spec in layout:
        heads, size, dim = spec.shape
        pages = rows[:, start : start + prod(spec.shape)].reshape(count, heads, size, dim)
        planes.append(pages.swapaxes(0, 1).reshape(heads, count * size, dim))
        start += prod(spec.shape)
    return list(zip(planes[0::2], planes[1::2], strict=True))


def pack_arrays(value: Any) -> Record:
    """A snapshot: arrays in nested lists, with None, numbers and text among them.

    Raises:
        TypeError: something else is in it.
    """
    arrays: list[mx.array] = []

    def outline(item: Any) -> Any:
        if isinstance(item, mx.array):
            arrays.append(item)
            return {"array": len(arrays) - 1}
        if isinstance(item, list | tuple):
            return [outline(inner) for inner in item]
        if item is None or isinstance(item, bool | int | float | str):
            return item
        raise TypeError(f"a snapshot cannot be kept with a {type(item).__name__} in it")

    note = json.dumps(outline(value))
    layout = tuple(
        TensorSpec(str(number), _NAMES[str(array.dtype)], array.shape)
        for number, array in enumerate(arrays)
    )
    return Record(layout, b"".join(_bytes(array) for array in arrays), note)


def unpack_arrays(record: Record) -> Any:
    """The snapshot in a record; tuples have become lists.

    Raises:
        PageFileError: the record is not a snapshot's.
    """
    arrays, start = [], 0
    for spec in record.layout:
        raw = np.frombuffer(record.data, np.uint8, spec.nbytes, start)
        arrays.append(mx.array(raw).view(_DTYPES[spec.dtype]).reshape(spec.shape))
        start += spec.nbytes

    def fill(item: Any) -> Any:
        if isinstance(item, dict):
            return arrays[item["array"]]
        return [fill(inner) for inner in item] if isinstance(item, list) else item

    try:
        return fill(json.loads(record.note))
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise PageFileError("it is not a snapshot") from error


def _bytes(array: mx.array) -> bytes:
    return np.array(array.reshape(-1).view(mx.uint8)).tobytes()
