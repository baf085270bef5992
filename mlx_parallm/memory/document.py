"""A Document: one text's memories, with where each of them is in the text."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

LEFT_OVER_S = 600.0  # a file without a document is a crash's once it is this old


@dataclass(frozen=True, eq=False)
class Document:
    """What is known of a document without its K and V.

    Attributes:
        uid: names this very content, for ever; id: the client's name for it.
        text: the tokens' text; offsets: (num_memories, 2) characters of each memory.
        indices: (num_memories,) each memory's place among the document's tokens.
        num_tokens: of the document, special ones included.
        num_layers: layers whose K and V are stored.
        dtype: of K and V; window, stride: how they were made.
        fingerprint: of the model that made them.
        nbytes: of K and V; created: seconds since 1970.
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

    @property
    def num_memories(self) -> int:
        """Tokens that can be attended to."""
        return len(self.indices)

    def header(self) -> str:
        """Everything here as JSON."""
        values = {**vars(self), "offsets": self.offsets.tolist(), "indices": self.indices.tolist()}
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def from_header(cls, header: str) -> Document:
        """The document of header()."""
        values = json.loads(header)
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

    def path(self, uid: str) -> Path:
        """Where a document's payload is."""
        return self.folder / f"{uid}.safetensors"

    def write(self, uid: str, payload: bytes) -> None:
        """Put a payload on the disk; a crash leaves nothing under its name."""
        target = self.path(uid)
        partial = target.with_suffix(".part")
        with partial.open("wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(target)

    def read_layer(self, uid: str, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """K and V of one layer; nothing else of the file is read."""
        with safe_open(self.path(uid), framework="numpy") as file:
            return file.get_tensor(f"k.{layer}"), file.get_tensor(f"v.{layer}")

    def has(self, uid: str) -> bool:
        """Whether the payload is here."""
        return self.path(uid).exists()

    def remove(self, uid: str) -> None:
        """Forget a payload."""
        self.path(uid).unlink(missing_ok=True)

    def keep_only(self, uids: set[str], older_than_s: float = LEFT_OVER_S) -> None:
        """Remove what a crash has left, but not what another process is writing now."""
        before = time.time() - older_than_s
        for path in [*self.folder.glob("*.safetensors"), *self.folder.glob("*.part")]:
            known = path.suffix != ".part" and path.stem in uids
            if not known and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
