"""Jobs: documents become memories in the background, chunk by chunk between decode steps."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_parallm.errors import ParallmError, UnavailableError
from mlx_parallm.memory.capture import Capture, windows
from mlx_parallm.memory.document import Document, pack
from mlx_parallm.memory.text import Tokens

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import Engine

log = logging.getLogger(__name__)

_IDLE_CHUNK = 512
_BUSY_CHUNK = {"cpu": 64, "gpu": 512}  # what a step may be held up by; as for prompts
_KEPT_JOBS = 256
_numbers = itertools.count(1)

Layers = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class NewDocument:
    """A document that is to become memories."""

    id: str
    tokens: Tokens
    metadata: dict[str, Any]


@dataclass(eq=False)
class MemoryJob:
    """Documents on their way into a collection.

    Attributes:
        status: "queued", "running", "done", "failed" or "cancelled".
        total: tokens to run through the model, overlaps of windows included; done: so far.
        finished: documents that are stored.
        error: why it failed.
    """

    collection: str
    documents: list[NewDocument]
    window: int
    stride: int
    id: str = field(default_factory=lambda: f"memjob-{next(_numbers)}-{time.time_ns():x}")
    status: str = "queued"
    total: int = 0
    done: int = 0
    finished: int = 0
    version: int | None = None
    error: ParallmError | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    ended: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        for document in self.documents:
            parts = windows(len(document.tokens.ids), self.window, self.stride)
            self.total += sum(part.stop - part.start for part in parts)

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


Store = Callable[[NewDocument, MemoryJob, Layers, int], int]


class JobRunner:
    """One thread that feeds the engine one chunk at a time.

    Args:
        store: keeps a finished document, returns its collection's version.
    """

    def __init__(self, engine: Engine, store: Store) -> None:
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
        """End after the chunk that is under way; what is not stored by then is not kept."""
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
                layers = self._memorize(job, document)
                if layers is None:
                    return
                job.version = self._store(document, job, layers, len(layers))
                job.finished += 1
            self._end(job, "done", None)
        except ParallmError as error:
            self._end(job, "failed", error)
        except Exception:
            log.exception("making memories failed")
            self._end(job, "failed", ParallmError("The server failed on these memories."))

    @staticmethod
    def _end(job: MemoryJob, status: str, error: ParallmError | None) -> None:
        job.status, job.error = status, error
        job.documents = []  # texts are not needed any more
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
                piece = self._engine.call(lambda steps=steps: _next(steps)).result()  # type: ignore[misc]
                if piece is None:
                    break
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


def _next(steps: Any) -> _Piece | None:
    """One forward, and its K and V for the host. On the engine's thread."""
    found = next(steps, None)
    if found is None:
        return None
    computed, kept = found
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
    new: NewDocument, job: MemoryJob, num_layers: int, dtype: str, fingerprint: str, nbytes: int
) -> Document:
    """A document that was just made into memories."""
    tokens = new.tokens
    return Document(
        id=new.id,
        collection=job.collection,
        text=tokens.text,
        offsets=tokens.offsets[tokens.kept],
        indices=np.flatnonzero(tokens.kept).astype(np.int32),
        num_tokens=len(tokens.ids),
        num_layers=num_layers,
        dtype=dtype,
        window=job.window,
        stride=job.stride,
        fingerprint=fingerprint,
        metadata=new.metadata,
        nbytes=nbytes,
    )


def payload_of(layers: Items[tuple[np.ndarray, np.ndarray]]) -> bytes:
    """What a backend stores of a document."""
    return pack(layers)
