"""The MemoryBackend: where collections of documents are kept. One contract, several stores."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.memory.backends.store_errors import MemoryStoreError

if TYPE_CHECKING:
    import numpy as np

    from mlx_parallm.memory.document import Document, DocumentFiles

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20  # stores that limit the size of a value get payloads in parts


@dataclass(frozen=True)
class StoredCollection:
    """One version of a collection.

    Attributes:
        version: grows by one with every change; never used again for other documents.
        documents: in the order in which they were added.
    """

    name: str
    version: int
    documents: tuple[Document, ...] = field(default_factory=tuple)


def collections_of(
    versions: Iterable[tuple[str, int]], documents: Iterable[Document]
) -> list[StoredCollection]:
    """Collections from their names and versions, and from the documents of all of them."""
    by_name: dict[str, list[Document]] = {}
    for document in documents:
        by_name.setdefault(document.collection, []).append(document)
    return [StoredCollection(name, n, tuple(by_name.get(name, ()))) for name, n in versions]


class MemoryBackend(ABC):
    """Keeps documents; every method is atomic, even if the process is killed.

    A document is stored whole or not at all. Methods may be called from any
    thread, and raise MemoryStoreError where the store fails.
    """

    name: str
    durable: bool = True
    shared: bool = False  # with other processes
    keeps_jobs: bool = False  # see keep_job()
    files: DocumentFiles | None = None  # where payloads can be read in parts

    @abstractmethod
    def put(self, document: Document, payload: bytes) -> int:
        """Add a document; it takes the place of one with the same id in its collection.

        Args:
            payload: its K and V, see document.pack().

        Returns:
            the collection's new version.
        """

    @abstractmethod
    def payload(self, uid: str) -> bytes:
        """A document's K and V.

        Raises:
            MissingPayloadError: there is no such document.
        """

    @abstractmethod
    def collections(self) -> list[StoredCollection]:
        """Everything stored, by name."""

    @abstractmethod
    def delete_document(self, collection: str, document_id: str) -> bool:
        """Remove a document; says whether it was there."""

    @abstractmethod
    def delete_collection(self, collection: str) -> bool:
        """Remove a collection with its documents; says whether it was there."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; nothing may be called afterwards."""

    def damage(self, document: Document) -> str | None:
        """What is wrong with a document's payload; None where nothing is known to be."""
        return None if self.files is None else self.files.damage(document)

    def keep_job(self, job_id: str, submission: str) -> None:
        """Keep what a client has asked for until drop_job(), whatever happens to the process.

        Only a store that `keeps_jobs` can.
        """
        raise MemoryStoreError(f"The store {self.name} keeps no jobs.")

    def kept_jobs(self) -> list[tuple[str, str]]:
        """(id, submission) of the jobs that are kept, the oldest first."""
        return []

    def drop_job(self, job_id: str) -> bool:
        """Forget a job that has ended; says whether it was kept."""
        return False

    def search(
        self, uid: str, layer: int, head: int, queries: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """A document's memories whose stored keys are most similar to queries, by cosine.

        Attention has its own search (models/retrieval.py), on keys that are held
        in memory; this one is for looking into a store.

        Args:
            head: the kv head; queries: (N, dim) float32.

        Returns:
            (N, k) places and similarities, best first; k is cut to how many there are.
        """
        import numpy as np

        keys = self._unit_keys(uid, layer, head)
        similarities = _unit(queries) @ keys.T
        best = np.argsort(-similarities, axis=1, kind="stable")[:, : min(k, len(keys))]
        return best, np.take_along_axis(similarities, best, axis=1)

    def _unit_keys(self, uid: str, layer: int, head: int) -> np.ndarray:
        from safetensors.numpy import load

        return _unit(as_float32(load(self.payload(uid))[f"k.{layer}"][head]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: np.ndarray = (vectors / np.maximum(lengths, 1e-30)).astype(np.float32)
    return unit


def as_float32(array: np.ndarray) -> np.ndarray:
    """Stored K or V as numbers; bfloat16 is stored as its bits."""
    import numpy as np

    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32)


def need(package: str, extra: str, store: str) -> InvalidRequestError:
    """The error where a store's client library is missing."""
    return InvalidRequestError(
        f'Memories in {store} need the package {package}: pip install "mlx_parallm[{extra}]"'
    )


def failed(store: str, error: Exception, starting: bool) -> MemoryStoreError:
    """A store's failure for a client; what the store says is for the operator only."""
    if starting:
        return MemoryStoreError(f"{store} cannot be used for memories: {error}")
    log.error("%s failed: %s", store, error)
    return MemoryStoreError(f"The memories' store failed ({store}).")


def parts_of(payload: bytes) -> list[bytes]:
    """A payload in parts of at most PART_BYTES."""
    return [payload[at : at + PART_BYTES] for at in range(0, len(payload), PART_BYTES)] or [b""]
