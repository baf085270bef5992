"""New weights for a whole model, read from files or bytes. Any thread may read; no mlx."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mlx_parallm.errors import BodyTooLargeError, InvalidRequestError, NotFoundError
from mlx_parallm.models.checkpoint.tensor_file import Tensor, read_as_stored
from mlx_parallm.models.places import named_place

_FILES = "model*.safetensors"  # those that mlx-lm loads of a folder


@dataclass(slots=True)
class Upload:
    """Tensors by name. Who makes parameters of them takes them out."""

    tensors: dict[str, Tensor]

    @property
    def nbytes(self) -> int:
        """Bytes on the host."""
        return sum(tensor.values.nbytes for tensor in self.tensors.values())

    def digest(self) -> str:
        """32 hexadecimal digits: SHA-256 over each tensor's name, type, shape and bytes, in the
        order of the names, so that it does not matter how they lie in files."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.tensors.items()):
            add_to_digest(digest, name, tensor)
        return digest.hexdigest()[:32]


def add_to_digest(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Let a hash depend on a tensor."""
    head = [name, tensor.kind, list(tensor.values.shape)]
    digest.update(json.dumps(head, separators=(",", ":")).encode())
    digest.update(np.ascontiguousarray(tensor.values).data)


def read_body(data: bytes) -> Upload:
    """The weights in one safetensors file.

    Raises:
        InvalidRequestError: truncated, damaged, of another type, or not finite.
    """
    return Upload(read_as_stored(data))


def read_path(path: str, most: int) -> Upload:
    """The weights in a file, or in all files of a folder that mlx-lm would load.

    Args:
        most: bytes that the files may have together.

    Raises:
        NotFoundError: there are none.
        InvalidRequestError: they cannot be read; a name twice.
        BodyTooLargeError: they are larger than any weights of this model.
    """
    files = files_of(path, most)
    try:
        return merged(read_body(file.read_bytes()) for file in files)
    except OSError as error:
        raise _unreadable(path, error) from None


def files_of(path: str, most: int) -> list[Path]:
    """A file, or all files of a folder that mlx-lm would load; see read_path.

    Raises:
        NotFoundError, InvalidRequestError, BodyTooLargeError: there are none, or too large ones.
    """
    place = named_place(path, "path")
    files = sorted(place.glob(_FILES)) if place.is_dir() else [place]
    if not files or not files[0].is_file():
        wanted = f" or {_FILES} in it" if place.is_dir() else ""
        raise NotFoundError(f"{path[:300]}: there is no such file{wanted}.", param="path")
    try:
        if sum(file.stat().st_size for file in files) > most:
            raise BodyTooLargeError(f"{path[:300]} is larger than any weights of this model.")
    except OSError as error:
        raise _unreadable(path, error) from None
    return files


def _unreadable(path: str, error: OSError) -> InvalidRequestError:
    return InvalidRequestError(f"{path[:300]}: {error.strerror or error}.", param="path")


def merged(parts: Iterable[Upload]) -> Upload:
    """All parts as one.

    Raises:
        InvalidRequestError: two have a tensor of the same name.
    """
    found: dict[str, Tensor] = {}
    for part in parts:
        twice = found.keys() & part.tensors.keys()
        if twice:
            raise InvalidRequestError(f"{min(twice)[:200]}: there are two tensors of this name.")
        found |= part.tensors
    return Upload(found)
