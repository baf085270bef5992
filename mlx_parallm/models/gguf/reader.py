"""What is in a GGUF file, or in all files of a split one: metadata and tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from mlx_parallm.errors import ModelLoadError

_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@dataclass(frozen=True)
class GgufTensor:
    """A tensor as it is stored.

    Attributes:
        name: in llama.cpp's naming; kind: such as F32 or Q4_1.
        shape: outermost axis first, as everywhere else here.
        data: numbers, or (..., bytes of a row) uint8 where kind is a block type.
    """

    name: str
    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    data: np.ndarray


class GgufFile:
    """An open file; tensors are mapped, not read.

    Raises:
        ModelLoadError: it is no GGUF file, or a part of it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._readers = [_open(part) for part in parts_of(path)]
        self._values: dict[str, Any] = {}

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value, or the default where there is none; not to be changed."""
        if key not in self._values:
            field = self._readers[0].fields.get(key)
            self._values[key] = None if field is None else field.contents()
        value = self._values[key]
        return default if value is None else value

    def need(self, key: str) -> Any:
        """A metadata value that a model cannot be without.

        Raises:
            ModelLoadError: it is not there.
        """
        value = self.get(key)
        if value is None:
            raise ModelLoadError(f"{self.path}: there is no {key} in this file")
        return value

    def override(self, values: dict[str, Any]) -> None:
        """Other metadata from now on."""
        self._values |= values

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return {tensor.name for reader in self._readers for tensor in reader.tensors}

    def tensors(self) -> Iterator[GgufTensor]:
        """All tensors, in the order of the file."""
        for reader in self._readers:
            for tensor in reader.tensors:
                shape = tuple(int(n) for n in reversed(tensor.shape))
                yield GgufTensor(tensor.name, tensor.tensor_type, shape, tensor.data)

    def tensor(self, name: str) -> GgufTensor | None:
        """One tensor by its name."""
        return next((tensor for tensor in self.tensors() if tensor.name == name), None)


def parts_of(path: Path) -> list[Path]:
    """All files of a model; several where it was split.

    Raises:
        ModelLoadError: a part is not there.
    """
    found = _SPLIT.search(path.name)
    if not found:
        return [path]
    stem, count = path.name[: found.start()], found[2]
    parts = [path.with_name(f"{stem}-{i:05}-of-{count}.gguf") for i in range(1, int(count) + 1)]
    for part in parts:
        if not part.is_file():
            raise ModelLoadError(f"{path}: its part {part.name} is missing")
    return parts


_Parts = tuple[int, list[np.ndarray], list[int], list[gguf.GGUFValueType]]


class _Reader(gguf.GGUFReader):
    """gguf's reader on a plain array, and lists at once: it takes a second for 20,000 entries,
    and vocabularies have hundreds of thousands."""

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        """The whole file, mapped."""
        return self._bytes

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._bytes = mapped.view(np.ndarray)

    def _get_field_parts(self, orig_offs: int, raw_type: int) -> _Parts:
        """Bytes of a value, its parts, which of them are its contents, and its types."""
        if raw_type != gguf.GGUFValueType.ARRAY:
            return super()._get_field_parts(orig_offs, raw_type)
        kind, count = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
        inner = gguf.GGUFValueType(int(kind[0]))
        if inner == gguf.GGUFValueType.STRING:
            size, texts = self._texts(orig_offs + 12, int(count[0]))
        elif inner in self.gguf_scalar_to_np:
            texts = [self._get(orig_offs + 12, self.gguf_scalar_to_np[inner], int(count[0]))]
            size = int(texts[0].nbytes)
        else:
            return super()._get_field_parts(orig_offs, raw_type)
        types = [gguf.GGUFValueType.ARRAY, inner]
        return 12 + size, [kind, count, *texts], list(range(2, 2 + len(texts))), types

    def _texts(self, start: int, count: int) -> tuple[int, list[np.ndarray]]:
        """How many bytes so many texts take, and each of them."""
        view, at, found = self._bytes.data, start, []
        order: Literal["little", "big"] = "big" if self.endianess.name == "BIG" else "little"
        for _ in range(count):
            length = int.from_bytes(view[at : at + 8], order)
            found.append(self._bytes[at + 8 : at + 8 + length])
            at += 8 + length
        return at - start, found


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return _Reader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelLoadError(f"{path}: not readable as a GGUF file: {error}") from error
