"""Jobs: documents become memories in the background, chunk by chunk between decode steps."""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
import uuid
import zlib
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import mlx.core as mx
import numpy as np

from mlx_parallm.errors import NotANumberError, NotMadeYetError, ParallmError, UnavailableError
from mlx_parallm.memory.capture import Capture, windows
from mlx_parallm.memory.document import Document, pack
from mlx_parallm.memory.text import Tokens

if TYPE_CHECKING:
    from mlx_parallm.engine.adapters.adapter import Adapter
    from mlx_parallm.engine.engine import Engine
    from mlx_parallm.memory.backends.backend import StoredCollection

log = logging.getLogger(__name__)

_IDLE_CHUNK = 512
_BUSY_CHUNK = {"cpu": 64, "gpu": 512}  # tokens of a forward, so that decode steps go on
_BUSY_S = 0.02  # until it is looked again whether an adapter finds a slot
_KEPT_JOBS = 256

Layers = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class NewDocument:
    """A document that is to become memories. id None makes one of its content."""

    given_id: str | None
    tokens: Tokens
    metadata: dict[str, Any]

    @cached_property
    def content(self) -> str:
        """A hash of the text and its tokens."""
        digest = hashlib.blake2b(self.tokens.text.encode(errors="surrogatepass"), digest_size=20)
        digest.update(self.tokens.ids.astype("<i4").tobytes())
        return digest.hexdigest()

    @property
    def id(self) -> str:
        """The same for the same content, where the client has not named it."""
        return self.given_id or f"doc-{self.content[:12]}"

    def cost(self, window: int, stride: int) -> int:
        """Tokens to run through the model, overlaps of windows included."""
        parts = windows(len(self.tokens.ids), window, stride)
        return sum(part.stop - part.start for part in parts)


@dataclass(eq=False)
class MemoryJob:
    """Documents that are being made into memories of a collection.

    Attributes:
        status: "queued", "running", "done", "failed" or "cancelled".
        total: tokens to run through the model, overlaps of windows included; done: so far.
        stored: the documents that are stored, those that were there already included.
        durable: whether it goes on after the end of the process.
        adapter: that its memories are made with.
        error: why it failed.
    """

    collection: str
    documents: list[NewDocument]
    window: int
    stride: int
    id: str = field(default_factory=lambda: f"memjob-{uuid.uuid4().hex[:16]}")
    durable: bool = False
    adapter: Adapter | None = None
    document_ids: list[str] = field(default_factory=list)
    status: str = "queued"
    total: int = 0
    done: int = 0
    stored: list[Document] = field(default_factory=list)
    version: int | None = None
    error: ParallmError | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.document_ids = [document.id for document in self.documents]
        self.total = sum(document.cost(self.window, self.stride) for document in self.documents)

    def not_made_yet(self) -> NotMadeYetError:
        """For whoever asks for its collection before it has ended."""
        percent = 100 * self.done // max(1, self.total)
        return NotMadeYetError(
            f"The collection {self.collection[:200]!r} is still being made ({percent}%); "
            f"its job is {self.id}.",
            param="memory.collections",
        )

    def wait(self, timeout: float | None = None) -> None:
        """Until it has ended.

        Raises:
            TimeoutError: not in time.
            ParallmError: why it failed.
        """
        if not self.ended.wait(timeout):
            raise TimeoutError("the memories are not made yet")
        if self.error is not None:
            raise self.error


class DocumentStore(Protocol):
    """Where a job's documents go."""

    def find(self, new: NewDocument, job: MemoryJob) -> StoredCollection | None:
        """The collection, if it holds this same document already."""

    def fingerprint_with(self, adapter: Adapter | None) -> str:
        """The model's, as it computes now, with an adapter."""

    def store(
        self, new: NewDocument, job: MemoryJob, layers: Layers, fingerprint: str
    ) -> StoredCollection:
        """The collection with the document as its last one."""

    def ended(self, job: MemoryJob) -> None:
        """The job no longer has to be continued after a restart."""


class JobRunner:
    """One thread that feeds the engine one chunk at a time.

    Args:
        store: keeps finished documents.
    """

    def __init__(self, engine: Engine, store: DocumentStore) -> None:
        self._engine = engine
        self._store = store
        self._capture: Capture | None = None
        self._jobs: dict[str, MemoryJob] = {}
        self._queue: queue.SimpleQueue[MemoryJob | None] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="memory-jobs", daemon=True)
        self._thread.start()

    @property
    def jobs(self) -> list[MemoryJob]:
        """The newest jobs, oldest first."""
        return list(self._jobs.values())

    def job(self, job_id: str) -> MemoryJob | None:
        """A job by its id."""
        return self._jobs.get(job_id)

    def making(self, collection: str) -> MemoryJob | None:
        """The oldest job that still makes memories of this collection."""
        going = (job for job in self.jobs if job.status in ("queued", "running"))
        return next((job for job in going if job.collection == collection), None)

    def add(self, job: MemoryJob) -> None:
        """Let a job wait for its turn."""
        self._jobs[job.id] = job
        ended = [key for key, other in list(self._jobs.items()) if other.ended.is_set()]
        for key in ended[: max(0, len(self._jobs) - _KEPT_JOBS)]:
            del self._jobs[key]
        self._queue.put(job)

    def capture(self) -> Capture:
        """What runs texts through the model. On the engine's thread only."""
        if self._capture is None:
            loaded = self._engine.loaded
            if loaded is None:
                raise UnavailableError("The model is not loaded.")
            self._capture = Capture(loaded.model)
        return self._capture

    def stop(self) -> None:
        """End after the chunk that is under way; durable jobs go on when the store is next used."""
        self._stopping = True
        self._queue.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None and not self._stopping:
            self._work(job)
        for job in self._jobs.values():
            if not job.ended.is_set():
                self._end(job, "cancelled", UnavailableError("The server is shutting down."))

    def _work(self, job: MemoryJob) -> None:
        job.status = "running"
        try:
            for document in job.documents:
                if not self._remember(job, document):
                    return
            self._end(job, "done", None)
        except ParallmError as error:
            self._end(job, "failed", error)
        except Exception:
            log.exception("making memories failed")
            self._end(job, "failed", ParallmError("The server failed on these memories."))

    def _remember(self, job: MemoryJob, document: NewDocument) -> bool:
        """Store a document, unless it is stored; False when the server stops."""
        before = job.done
        collection = self._store.find(document, job)
        if collection is None:
            made = self._by_one_model(job, document)
            if made is None:
                return False
            collection = self._store.store(document, job, *made)
        job.done = before + document.cost(job.window, job.stride)
        job.version = collection.version
        job.stored.extend(found for found in collection.documents if found.id == document.id)
        return True

    def _by_one_model(self, job: MemoryJob, document: NewDocument) -> tuple[Layers, str] | None:
        """Memories and the fingerprint of the model that made all of them; None as _memorize."""
        begun = job.done
        while True:
            fingerprint, job.done = self._store.fingerprint_with(job.adapter), begun
            layers = self._memorize(job, document)
            if layers is None:
                return None
            if fingerprint == self._store.fingerprint_with(job.adapter):
                return layers, fingerprint

    def _end(self, job: MemoryJob, status: str, error: ParallmError | None) -> None:
        job.status, job.error = status, error
        job.documents = []  # texts are not needed any more
        if status != "cancelled":
            self._store.ended(job)
        job.ended.set()

    def _memorize(self, job: MemoryJob, document: NewDocument) -> Layers | None:
        """K and V of the document's kept tokens; None when the server stops."""
        tokens = document.tokens
        pieces: list[Layers] = []
        for part in windows(len(tokens.ids), job.window, job.stride):
            steps = self._engine.call(
                lambda part=part: self.capture().steps(tokens.ids, part, self._chunk)  # type: ignore[misc]
            ).result()
            before = job.done
            while True:
                if self._stopping:
                    return None
                piece = self._engine.call(partial(self._next, steps, job.adapter)).result()
                if piece is None:
                    break
                if piece is _BUSY:
                    time.sleep(_BUSY_S)
                    continue
                pieces.append(piece.layers)
                job.done = before + piece.computed
            job.done = before + part.stop - part.start
        kept = tokens.kept
        return [
            (
                np.concatenate([p[layer][0] for p in pieces], axis=1)[:, kept],
                np.concatenate([p[layer][1] for p in pieces], axis=1)[:, kept],
            )
            for layer in range(len(pieces[0]))
        ]

    def _next(self, steps: Any, adapter: Adapter | None) -> _Piece | None:
        """One forward, and its K and V for the host. On the engine's thread."""
        with self._engine.using(adapter) as can:
            return _next(steps) if can else _BUSY

    def _chunk(self) -> int:
        """Tokens of the next forward: few while others wait for their next token."""
        stats = self._engine.stats()
        if not stats.running and not stats.waiting:
            return _IDLE_CHUNK
        kind = "cpu" if mx.default_device().type == mx.DeviceType.cpu else "gpu"
        return self._engine.config.prefill_chunk or _BUSY_CHUNK[kind]


@dataclass(frozen=True, slots=True)
class _Piece:
    layers: Layers
    computed: int


_BUSY = _Piece([], 0)
"""Rows use all slots of adapters."""


def _next(steps: Any) -> _Piece | None:
    found = next(steps, None)
    if found is None:
        return None
    computed, kept = found
    # What is NaN in one layer is so in all behind it.
    if not mx.isfinite(kept[-1][1].astype(mx.float32).sum()).item():
        raise NotANumberError("The model's K and V of this text are not finite.")
    return _Piece([(_to_host(keys), _to_host(values)) for keys, values in kept], computed)


def _to_host(array: mx.array) -> np.ndarray:
    """A copy as numpy; bfloat16, which numpy lacks, as its bits."""
    if array.dtype == mx.bfloat16:
        array = array.view(mx.uint16)
    return np.array(array)


def to_device(array: np.ndarray, dtype: str) -> mx.array:
    """The inverse of what documents store."""
    made = mx.array(array)
    return made.view(mx.bfloat16) if dtype == "bfloat16" else made


def document_of(
    new: NewDocument, job: MemoryJob, layers: Layers, fingerprint: str, payload: bytes
) -> Document:
    """A document that was just made into memories."""
    tokens, kind = new.tokens, layers[0][0].dtype
    return Document(
        id=new.id,
        collection=job.collection,
        text=tokens.text,
        offsets=tokens.offsets[tokens.kept],
        indices=np.flatnonzero(tokens.kept).astype(np.int32),
        num_tokens=len(tokens.ids),
        num_layers=len(layers),
        dtype="bfloat16" if kind == np.uint16 else str(kind),
        window=job.window,
        stride=job.stride,
        fingerprint=fingerprint,
        metadata=new.metadata,
        nbytes=len(payload),
        content=new.content,
        checksum=zlib.crc32(payload),
    )


def payload_of(layers: Items[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """What a backend stores of a document."""
    return pack(layers)
