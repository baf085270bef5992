"""What is in a GGUF file, or in all files of a split one: metadata and tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value, or the default where there is none."""
        field = self._readers[0].fields.get(key)
        return default if field is None else field.contents()

    def need(self, key: str) -> Any:
        """A metadata value that a model cannot be without.

        Raises:
            ModelLoadError: it is not there.
        """
        value = self.get(key)
        if value is None:
            raise ModelLoadError(f"{self.path}: there is no {key} in this file")
        return value

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


class _Reader(gguf.GGUFReader):
    """gguf's reader on a plain array: slices of np.memmap are several times slower, and a
    vocabulary needs hundreds of thousands."""

    @property  # type: ignore[override]
    def data(self) -> np.ndarray:
        """The whole file, mapped."""
        return self._bytes

    @data.setter
    def data(self, mapped: np.ndarray) -> None:
        self._bytes = mapped.view(np.ndarray)


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return _Reader(path)
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ModelLoadError(f"{path}: not readable as a GGUF file: {error}") from error
