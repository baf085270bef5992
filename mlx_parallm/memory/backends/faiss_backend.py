"""FAISSBackend: memories for the life of the process, searched with FAISS."""

from __future__ import annotations

import os
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from mlx_parallm.memory.backends.backend import (
    MemoryBackend,
    StoredCollection,
    _unit,
    as_float32,
)
from mlx_parallm.memory.document import Document, DocumentFiles

# Above this many memories a graph is searched instead of all keys. See scripts/bench_memory.py.
HNSW_ABOVE = 65536
_HNSW_LINKS = 32
_HNSW_BREADTH = 128
_WORK_OF_A_THREAD = 1 << 26  # products; some 10 ms
_INDICES = 256  # kept at once, one a document, layer and head


class FAISSBackend(MemoryBackend):
    """Documents in files of a temporary folder, and an index for each head of each layer."""

    name = "faiss"
    durable = False

    def __init__(self, folder: Path | None = None, hnsw_above: int = HNSW_ABOVE) -> None:
        self._temporary = None if folder else tempfile.TemporaryDirectory(prefix="memories-")
        self.files: DocumentFiles = DocumentFiles(
            folder or Path(self._temporary.name)  # type: ignore[union-attr]
        )
        self.hnsw_above = hnsw_above
        self._collections: dict[str, StoredCollection] = {}
        self._versions: dict[str, int] = {}
        self._indices: OrderedDict[tuple[str, int, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, document: Document, payload: bytes) -> int:
        self.files.write(document.uid, payload)
        with self._lock:
            return self._change(document.collection, document.id, document)

    def payload(self, uid: str) -> bytes:
        return self.files.read(uid)

    def collections(self) -> list[StoredCollection]:
        with self._lock:
            return sorted(self._collections.values(), key=lambda c: c.name)

    def delete_document(self, collection: str, document_id: str) -> bool:
        with self._lock:
            stored = self._collections.get(collection)
            if stored is None or all(d.id != document_id for d in stored.documents):
                return False
            self._change(collection, document_id, None)
            return True

    def delete_collection(self, collection: str) -> bool:
        with self._lock:
            stored = self._collections.pop(collection, None)
        if stored is None:
            return False
        self._forget(stored.documents)
        return True

    def close(self) -> None:
        self._indices.clear()
        if self._temporary is not None:
            self._temporary.cleanup()

    def search(
        self, uid: str, layer: int, head: int, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        index = self._index(uid, layer, head)
        _choose_threads(len(queries) * index.ntotal * index.d)
        similarities, ids = index.search(_unit(queries), min(k, index.ntotal))
        return ids, similarities

    def _change(self, name: str, document_id: str, new: Document | None) -> int:
        old = self._collections.get(name) or StoredCollection(name, 0)
        gone = tuple(d for d in old.documents if d.id == document_id)
        kept = tuple(d for d in old.documents if d.id != document_id)
        version = self._versions[name] = self._versions.get(name, 0) + 1
        documents = kept if new is None else (*kept, new)
        self._collections[name] = StoredCollection(name, version, documents)
        self._forget(gone)
        return version

    def _forget(self, documents: tuple[Document, ...]) -> None:
        gone = {document.uid for document in documents}
        for uid in gone:
            self.files.remove(uid)
        for key in [key for key in self._indices if key[0] in gone]:
            del self._indices[key]

    def _index(self, uid: str, layer: int, head: int) -> Any:
        key = (uid, layer, head)
        with self._lock:
            found = self._indices.get(key)
            if found is not None:
                self._indices.move_to_end(key)
                return found
        made = make_index(self._unit_keys(uid, layer, head), self.hnsw_above)
        with self._lock:
            self._indices[key] = made
            while len(self._indices) > _INDICES:
                self._indices.popitem(last=False)
        return made

    def _unit_keys(self, uid: str, layer: int, head: int) -> np.ndarray:
        keys, _ = self.files.read_layer(uid, layer)
        return _unit(as_float32(keys[head]))


def _choose_threads(work: int) -> None:
    """Threads that wait for each other cost a small search far more than they save.

    Seen beside MLX on two busy cores, 1,000 keys: 0.04 ms with one thread, and with
    two 0.03 ms at best and 68 ms in the median.
    """
    import faiss

    faiss.omp_set_num_threads(1 if work < _WORK_OF_A_THREAD else os.cpu_count() or 1)


def make_index(unit_keys: np.ndarray, hnsw_above: int = HNSW_ABOVE) -> Any:
    """An inner-product index over (M, dim) keys of length 1: exact up to `hnsw_above`."""
    import faiss

    dim = unit_keys.shape[1]
    index: Any
    if len(unit_keys) <= hnsw_above:
        index = faiss.IndexFlatIP(dim)
    else:
        index = faiss.IndexHNSWFlat(dim, _HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efSearch = _HNSW_BREADTH
    index.add(np.ascontiguousarray(unit_keys))
    return index
