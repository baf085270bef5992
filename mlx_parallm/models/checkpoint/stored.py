"""StoredTensors: tensors in safetensors files, of which one is read at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.checkpoint.tensor_file import Tensor, header_of, read_one


class StoredTensors:
    """All tensors of some files.

    Args:
        files: of which no two have a tensor of the same name.

    Raises:
        InvalidRequestError: two have, or one is no safetensors file.
    """

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self._places: dict[str, tuple[Path, int, Any]] = {}
        for file in files:
            entries, start = header_of(file)
            for name, entry in entries.items():
                if name in self._places:
                    raise InvalidRequestError(f"{name[:200]}: there are two tensors of this name.")
                self._places[name] = (file, start, entry)

    @property
    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._places)

    def read(self, name: str) -> Tensor:
        """One of them, on the host.

        Raises:
            InvalidRequestError: truncated, damaged, of another type, or not finite.
        """
        file, start, entry = self._places[name]
        return read_one(file, start, name, entry)

    def arrays(self) -> dict[str, mx.array]:
        """All of them, to be read when they are computed with."""
        found: dict[str, mx.array] = {}
        for file in self._files:
            found |= dict(mx.load(str(file)))  # type: ignore[arg-type]
        return found
