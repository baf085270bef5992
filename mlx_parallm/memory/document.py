"""A Document: one text's memories, with where each of them is in the text."""

from __future__ import annotations

import errno
import json
import os
import time
import uuid
import zlib
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mlx_parallm.memory.backends.store_errors import (
    DiskFullError,
    MemoryStoreError,
    MissingPayloadError,
)

LEFT_OVER_S = 600.0  # a file without a document is a crash's once it is this old
_CHUNK = 1 << 22


@dataclass(frozen=True, eq=False)
class Document:
    """Everything about a document except its K and V.

    Attributes:
        uid: identifies this content; never used again. id: the client's name for it.
        text: the tokens' text; offsets: (num_memories, 2) characters of each memory.
        indices: (num_memories,) each memory's place among the document's tokens.
        num_tokens: of the document, special ones included.
        num_layers: layers whose K and V are stored.
        dtype: of K and V; window, stride: how they were made.
        fingerprint: of the model that made them.
        nbytes: of K and V; created: seconds since 1970.
        content: a hash of the text and its tokens; "" where it was not noted.
        checksum: CRC-32 of the payload; None where it was not noted.
        problem: why the stored document cannot be used; other fields are then placeholders.
    """

    id: str
    collection: str
    text: str
    offsets: np.ndarray
    indices: np.ndarray
    num_tokens: int
    num_layers: int
    dtype: str
    window: int
    stride: int
    fingerprint: str
    metadata: dict[str, Any] = field(default_factory=dict)
    nbytes: int = 0
    uid: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    content: str = ""
    checksum: int | None = None
    problem: str | None = None

    @property
    def num_memories(self) -> int:
        """Tokens that can be attended to."""
        return len(self.indices)

    def header(self) -> str:
        """Everything here as JSON, behind its checksum."""
        values = {**vars(self), "offsets": self.offsets.tolist(), "indices": self.indices.tolist()}
        del values["problem"]
        text = json.dumps(values, ensure_ascii=False)
        return f"{zlib.crc32(text.encode()):08x} {text}"

    @classmethod
    def from_header(cls, header: str, collection: str, id: str, uid: str) -> Document:
        """The document of header().

        Args:
            collection, id, uid: as the store has them beside the header; a header that is
                damaged gives a document of that name with a `problem`.
        """
        try:
            found = cls._of_header(header)
        except (ValueError, TypeError, KeyError):
            found = None
        if found is not None and (found.collection, found.id, found.uid) == (collection, id, uid):
            return found
        nothing = np.zeros(0, dtype=np.int32)
        return cls(
            id=id,
            collection=collection,
            text="",
            offsets=nothing.reshape(0, 2),
            indices=nothing,
            num_tokens=0,
            num_layers=0,
            dtype="",
            window=0,
            stride=0,
            fingerprint="",
            uid=uid,
            created=0,
            problem="its description is damaged",
        )

    @classmethod
    def _of_header(cls, header: str) -> Document:
        checksum, text = ("", header) if header.startswith("{") else header.split(" ", 1)
        if checksum and int(checksum, 16) != zlib.crc32(text.encode()):
            raise ValueError("the header's checksum is wrong")
        values = json.loads(text)
        values["offsets"] = np.array(values["offsets"], dtype=np.int32).reshape(-1, 2)
        values["indices"] = np.array(values["indices"], dtype=np.int32)
        return cls(**values)


def pack(layers: Items[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """K before rotation and V of each layer, (kv_heads, n, dim), as safetensors."""
    arrays: dict[str, np.ndarray] = {}
    for place, (keys, values) in enumerate(layers):
        arrays[f"k.{place}"] = np.ascontiguousarray(keys)
        arrays[f"v.{place}"] = np.ascontiguousarray(values)
    return save(arrays)


class DocumentFiles:
    """Payloads as files, whole or not there, of which parts are read where they are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._checked: dict[str, tuple[tuple[int, int], str | None]] = {}

    def path(self, uid: str) -> Path:
        """Where a document's payload is."""
        return self.folder / f"{uid}.safetensors"

    def write(self, uid: str, payload: bytes) -> None:
        """Put a payload on the disk; a crash leaves nothing under its name.

        Raises:
            MemoryStoreError: it cannot be written; DiskFullError where there is no room.
        """
        target = self.path(uid)
        partial = target.with_suffix(".part")
        try:
            with partial.open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(target)
            _sync_folder(self.folder)
        except OSError as error:
            partial.unlink(missing_ok=True)
            kind = DiskFullError if error.errno == errno.ENOSPC else MemoryStoreError
            raise kind(f"The memories could not be written: {error.strerror}.") from error

    def read(self, uid: str) -> bytes:
        """A whole payload.

        Raises:
            MissingPayloadError: it is not there.
        """
        try:
            return self.path(uid).read_bytes()
        except OSError:
            raise MissingPayloadError(uid) from None

    def read_layer(self, uid: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """K and V of one layer; nothing else of the file is read.

        Raises:
            MemoryStoreError: the file is not what was written.
        """
        try:
            with safe_open(self.path(uid), framework="numpy") as file:
                return file.get_tensor(f"k.{layer}"), file.get_tensor(f"v.{layer}")
        except (OSError, SafetensorError) as error:
            raise MemoryStoreError(f"The memories of document {uid} cannot be read.") from error

    def damage(self, document: Document) -> str | None:
        """What is wrong with a document's file; None for nothing.

        The file is read once, and again when it has changed.
        """
        path = self.path(document.uid)
        try:
            found = path.stat()
            state = (found.st_mtime_ns, found.st_size)
            if self._checked.get(document.uid, (None,))[0] != state:
                self._checked[document.uid] = state, _difference(path, document)
        except FileNotFoundError:
            return "its file is missing"
        except OSError as error:
            return f"its file cannot be read ({error.strerror})"
        return self._checked[document.uid][1]

    def has(self, uid: str) -> bool:
        """Whether the payload is here."""
        return self.path(uid).exists()

    def remove(self, uid: str) -> None:
        """Forget a payload."""
        self.path(uid).unlink(missing_ok=True)
        self._checked.pop(uid, None)

    def keep_only(self, uids: set[str], older_than_s: float = LEFT_OVER_S) -> None:
        """Remove what a crash has left, but not what another process is writing now."""
        before = time.time() - older_than_s
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob("*.part")]:
            known = path.suffix != ".part" and path.stem in uids
            if not known and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)


def _difference(path: Path, document: Document) -> str | None:
    """How a file differs from what was written."""
    size = path.stat().st_size
    if document.nbytes and size != document.nbytes:
        return f"its file has {size} bytes and not {document.nbytes}"
    if document.checksum is not None and _checksum(path) != document.checksum:
        return "its file was changed: the checksum is another one"
    return None


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _sync_folder(folder: Path) -> None:
    """A new name is on the disk when its folder is."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
