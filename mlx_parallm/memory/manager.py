"""The MemoryManager: collections of one model, and the requests that use them."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import MAX_WIDTH, BatchedCache
from mlx_parallm.errors import InvalidRequestError, NotFoundError, UnavailableError
from mlx_parallm.memory import citations as cite
from mlx_parallm.memory.backends.backend import MemoryBackend, StoredCollection
from mlx_parallm.memory.backends.store_errors import (
    DamagedMemoriesError,
    MemoryStoreError,
    MissingPayloadError,
)
from mlx_parallm.memory.capture import DEFAULT_STRIDE, DEFAULT_WINDOW
from mlx_parallm.memory.document import Document, DocumentFiles
from mlx_parallm.memory.fingerprint import fingerprint_of
from mlx_parallm.memory.job import (
    JobRunner,
    Layers,
    MemoryJob,
    NewDocument,
    document_of,
    payload_of,
)
from mlx_parallm.memory.request import DEFAULT_TOPK, Citations, MemoryRequest
from mlx_parallm.memory.submission import Source, Submission
from mlx_parallm.memory.text import tokens_of
from mlx_parallm.memory.view import Position
from mlx_parallm.memory.view_cache import ViewCache

if TYPE_CHECKING:
    from mlx_parallm.engine.adapters.adapter import Adapter
    from mlx_parallm.engine.engine import Engine
    from mlx_parallm.models.loader import LoadedModel

log = logging.getLogger(__name__)

DEFAULT_COLLECTION = "default"


@dataclass(frozen=True)
class MemorySettings:
    """How a request uses memories; see MemoryRequest.

    Layers and local_offset that are None are the model's own with position "zero", and all layers
    and 0 with "contiguous", where memories equal a prefix.
    """

    topk: int = DEFAULT_TOPK
    sim_threshold: float | None = None
    layers: tuple[int, ...] | None = None
    position: Position = "zero"
    local_offset: int | None = None
    citations: Citations = "none"


class MemoryManager:
    """Makes, keeps and hands out the memories of the model of one engine.

    All methods may be called from any thread but the engine's; those that say so
    may take a while.

    Args:
        engine: ready.
        backend: where documents are kept.
        budget: bytes of memories held ready at most; None is no limit.

    A model's config.json may say what suits it, in `"extended_mind": {"window", "stride",
    "local_offset", "layers"}`; these are then the defaults.
    """

    def __init__(self, engine: Engine, backend: MemoryBackend, budget: int | None = None) -> None:
        if engine.loaded is None:
            raise UnavailableError("The model is not loaded.")
        self.backend = backend
        self._engine = engine
        self._loaded: LoadedModel = engine.loaded
        self._defaults = engine.loaded.memory_defaults
        self._fingerprints: dict[str, str] = {}  # of the model, adapters too -> its weights
        self._collections: dict[str, StoredCollection] = {}
        self._lock = threading.Lock()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._files = self._own_files()
        self._missing: dict[str, str] = {}  # uid of a document that could not be had -> why
        self.jobs = JobRunner(engine, self)
        self.views = ViewCache(engine, self._read_layer, self.jobs.capture, budget)
        self._reload()
        self._resume()

    # Making

    def add(
        self,
        sources: Items[Source],
        collection: str = DEFAULT_COLLECTION,
        window: int | None = None,
        stride: int | None = None,
        adapter: Adapter | None = None,
    ) -> MemoryJob:
        """Make memories of documents in the background; returns at once.

        A document that the collection holds already, the same content under the same id and
        with the same metadata, is not made again. Where the store keeps jobs, this one is on
        the disk when the method returns, and goes on after a crash.

        Args:
            window: tokens that run through the model together; stride: tokens by which
                it advances. None: the collection's own, or the model's, or 3072 and 512,
                cut to the model's context.
            adapter: that they are made with, and can be used with. Such a job ends with the
                process.

        Raises:
            InvalidRequestError: a document without tokens, or a window that does not fit.
        """
        window, stride = self._windows(collection, window, stride, adapter)
        self.check_model()
        made_with = self.fingerprint_with(adapter)
        submission = Submission(sources, collection, window, stride, made_with)
        job = self._job_of(submission, adapter)
        if job.durable:
            self.backend.keep_job(submission.id, submission.to_json())
        self.jobs.add(job)
        return job

    def _job_of(self, submission: Submission, adapter: Adapter | None = None) -> MemoryJob:
        documents = [
            NewDocument(
                source.id, tokens_of(self._loaded.tokenizer, source.content), source.metadata
            )
            for source in submission.sources
        ]
        return MemoryJob(
            submission.collection,
            documents,
            submission.window,
            submission.stride,
            submission.id,
            durable=self.backend.keeps_jobs and adapter is None,
            adapter=adapter,
        )

    def _resume(self) -> None:
        """Go on with what was asked for before the process ended."""
        for job_id, text in self.backend.kept_jobs():
            try:
                submission = Submission.from_json(text)
            except ValueError as error:
                log.error("what was asked for in %s cannot be read: %s", job_id, error)
                continue
            if submission.fingerprint != self.fingerprint_with(None):
                log.warning("%s waits for the model that it was sent to", job_id)
                continue
            self.jobs.add(self._job_of(submission))

    def check_model(self) -> None:
        """Raise UnsupportedError where the model cannot use memories."""
        self._engine.call(self.jobs.capture).result()

    def _windows(
        self, name: str, window: int | None, stride: int | None, adapter: Adapter | None
    ) -> tuple[int, int]:
        known = self._known(name)
        own = next((d for d in known.documents if d.problem is None), None) if known else None
        if known is not None and own is not None:
            if (window or own.window, stride or own.stride) != (own.window, own.stride):
                raise InvalidRequestError(
                    f"The collection {name!r} has window {own.window} and stride {own.stride}.",
                    param="window",
                )
            self._check_model_of(known, adapter)
            return own.window, own.stride
        limit = self._loaded.max_model_len
        own_window = self._defaults.get("window", DEFAULT_WINDOW)
        own_stride = self._defaults.get("stride", DEFAULT_STRIDE)
        window = min(own_window, limit) if window is None else window
        stride = min(own_stride, window) if stride is None else stride
        if window > limit:
            raise InvalidRequestError(
                f"A window of {window} tokens is over the model's context of {limit}.",
                param="window",
            )
        if stride > window:
            raise InvalidRequestError(
                f"A stride of {stride} tokens is over the window of {window}.", param="stride"
            )
        return window, stride

    def find(self, new: NewDocument, job: MemoryJob) -> StoredCollection | None:
        """For jobs: the collection, if it holds this same document undamaged."""
        if self.backend.shared:
            self._reload()  # another process may have removed it
        collection = self._known(job.collection)
        for document in collection.documents if collection else ():
            same = (document.id, document.content) == (new.id, new.content)
            same = same and document.fingerprint == self.fingerprint_with(job.adapter)
            if same and document.metadata == new.metadata and self._damage(document) is None:
                return collection
        return None

    def ended(self, job: MemoryJob) -> None:
        """For jobs: one that no longer has to be continued after a restart."""
        try:
            self.backend.drop_job(job.id)
        except MemoryStoreError as error:
            log.error("%s has ended, which could not be noted: %s", job.id, error)

    def store(
        self, new: NewDocument, job: MemoryJob, layers: Layers, fingerprint: str
    ) -> StoredCollection:
        """For jobs: keep a document that was made by the model of this fingerprint."""
        payload = payload_of(layers)
        document = document_of(new, job, layers, fingerprint, payload)
        version = self.backend.put(document, payload)
        with self._lock:
            old = self._collections.get(job.collection)
            kept = [d for d in old.documents if d.id != new.id] if old else []
            gone = [d for d in old.documents if d.id == new.id] if old else []
            stored = StoredCollection(job.collection, version, (*kept, document))
            self._collections[job.collection] = stored
        self._forget(gone)
        return stored

    # Looking

    def collections(self) -> list[StoredCollection]:
        """Everything there is, by name."""
        with self._lock:
            return [self._collections[name] for name in sorted(self._collections)]

    def collection(self, name: str) -> StoredCollection:
        """A collection's newest version.

        Raises:
            NotFoundError: there is none of that name.
        """
        known = self._known(name)
        if known is None:
            raise NotFoundError(
                f"The collection {name[:200]!r} does not exist.",
                param="memory.collections",
                code="collection_not_found",
            )
        return known

    def problem(self, collection: StoredCollection) -> str | None:
        """Why a collection cannot be used; None where it can. May read its files."""
        for document in collection.documents:
            damage = self._damage(document)
            if damage is not None:
                return f"document {document.id!r} is damaged: {damage}"
        self.fingerprint_with(None)
        digest = self._loaded.weights_digest
        known = [made for made, of in list(self._fingerprints.items()) if of == digest]
        return self._mismatch(collection, known)

    def _damage(self, document: Document) -> str | None:
        if document.problem is not None:
            return document.problem
        return self._missing.get(document.uid) or self.backend.damage(document)

    def _mismatch(self, collection: StoredCollection, made_with: Items[str]) -> str | None:
        """Why the collection is not one of these models'."""
        for document in collection.documents:
            if document.problem is not None:
                continue
            if document.fingerprint not in made_with:
                return f"document {document.id!r} was made with another model or adapter"
            if document.dtype != self._loaded.dtype:
                return f"document {document.id!r} was made in {document.dtype}"
        return None

    def fingerprint_with(self, adapter: Adapter | None) -> str:
        """The model's, with an adapter; see fingerprint.py."""
        digest = "" if adapter is None else adapter.digest
        if not self._loaded.fingerprint:
            self._engine.call(lambda: fingerprint_of(self._loaded)).result()
        made = fingerprint_of(self._loaded, digest)
        self._fingerprints[made] = self._loaded.weights_digest
        return made

    # Removing

    def delete(self, name: str, document_id: str | None = None) -> None:
        """Remove a collection, or one document of it. Requests that run keep theirs.

        Raises:
            NotFoundError: there is no such thing.
        """
        stored = self.collection(name)
        if document_id is None:
            self.backend.delete_collection(name)
            gone = list(stored.documents)
            with self._lock:
                self._collections.pop(name, None)
        else:
            gone = [d for d in stored.documents if d.id == document_id]
            if not gone or not self.backend.delete_document(name, document_id):
                raise NotFoundError(
                    f"The collection {name[:200]!r} has no document {document_id[:200]!r}.",
                    param="document_id",
                    code="document_not_found",
                )
            self._reload()
        self._forget(gone)

    def _forget(self, documents: Items[Document]) -> None:
        for document in documents:
            self.views.forget(document.uid)
            self._missing.pop(document.uid, None)
            if self._temporary is not None:
                self._files.remove(document.uid)

    # Using

    def request(
        self,
        names: Items[str],
        settings: MemorySettings = MemorySettings(),
        adapter: Adapter | None = None,
    ) -> MemoryRequest:
        """Pin the newest versions of collections; reads files where they are not held.

        Args:
            adapter: of the request; the collections must have been made with the same one.

        Raises:
            NotFoundError: an unknown collection.
            NotMadeYetError: one whose first document is still being made.
            InvalidRequestError: a collection of another model, or an unknown layer.
            DamagedMemoriesError: something of a collection was lost or changed.
        """
        digest = self._loaded.weights_digest
        documents = self._documents(names, adapter)
        return self._request(self.views.get(documents, settings.position), settings, digest)

    def ready_request(
        self, names: Items[str], settings: MemorySettings, adapter: Adapter | None = None
    ) -> MemoryRequest | None:
        """The same where nothing has to be read; None where it has."""
        digest = self._loaded.weights_digest
        view = self.views.held(self._documents(names, adapter), settings.position)
        return None if view is None else self._request(view, settings, digest)

    def _documents(self, names: Items[str], adapter: Adapter | None) -> tuple[Document, ...]:
        if not names:
            raise InvalidRequestError(
                "At least one collection is needed.", param="memory.collections"
            )
        found: list[Document] = []
        for name in dict.fromkeys(names):
            making = self.jobs.making(name)  # looked up first: it may end meanwhile
            if making is not None and self._known(name) is None:
                raise making.not_made_yet()
            collection = self.collection(name)
            self._check_model_of(collection, adapter)
            for document in collection.documents:
                if document.problem is not None:
                    raise _damaged(document, document.problem)
            found += collection.documents
        return tuple(found)

    def _request(self, view: Any, settings: MemorySettings, digest: str) -> MemoryRequest:
        own = self._defaults if settings.position == "zero" else {}
        layers = own.get("layers") if settings.layers is None else settings.layers
        offset, count = settings.local_offset, len(view.layers)
        wrong = [layer for layer in layers or () if count and not 0 <= layer < count]
        if wrong:
            raise InvalidRequestError(
                f"There is no layer {wrong[0]}: the model has {count}.", param="memory.layers"
            )
        return MemoryRequest(
            view,
            topk=settings.topk,
            sim_threshold=settings.sim_threshold,
            layers=None if layers is None else frozenset(layers),
            local_offset=own.get("local_offset", 0) if offset is None else offset,
            citations=settings.citations,
            weights_digest=digest,
        )

    def search(
        self, text: str, request: MemoryRequest, adapter: Adapter | None = None
    ) -> list[dict[str, Any]]:
        """What the tokens of a text retrieve, as spans with weights, the heaviest first.

        Args:
            request: with citations on. Of a long text the end counts.
        """
        ids = list(self._loaded.tokenizer.encode(text))[-MAX_WIDTH:]
        if not ids:
            raise InvalidRequestError("The query is empty.", param="query")
        found = self._engine.call(lambda: self._used(ids, request, adapter)).result()
        return cite.by_span(request.view, found)

    def _used(
        self, ids: list[int], request: MemoryRequest, adapter: Adapter | None
    ) -> list[cite.TokenCitation]:
        """On the engine's thread: one forward apart from the batch."""
        cache = BatchedCache(self._loaded.model)
        row = cache.join()
        row.memory, row.shift = request, request.shift
        cache.begin(0, 1, len(ids), [len(ids)])
        with self._engine.using(adapter) as can:
            if not can:
                raise UnavailableError("Running requests use all slots of adapters; try again.")
            logits = self._loaded.model(mx.array([ids]), cache=cache.layers)
        cited = cache.cited()
        cache.commit()
        mx.eval(logits)
        return cite.read(cited).get(0, [])

    def close(self) -> None:
        """Stop jobs and give everything back."""
        self.jobs.stop()
        self.views.clear()
        self.backend.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    # Inside

    def _known(self, name: str) -> StoredCollection | None:
        with self._lock:
            known = self._collections.get(name)
        if known is None and self.backend.shared:
            self._reload()  # another process may have made it
            with self._lock:
                known = self._collections.get(name)
        return known

    def _reload(self) -> None:
        found = {collection.name: collection for collection in self.backend.collections()}
        with self._lock:
            self._collections = found

    def _check_model_of(self, collection: StoredCollection, adapter: Adapter | None) -> None:
        problem = self._mismatch(collection, [self.fingerprint_with(adapter)])
        if problem is not None:
            shown = "this model" if adapter is None else f"the adapter {adapter.name!r}"
            raise InvalidRequestError(
                f"The collection {collection.name!r} cannot be used with {shown}: {problem}.",
                param="memory.collections",
                code="memory_mismatch",
            )

    def _own_files(self) -> DocumentFiles:
        """The backend's files, or copies in a folder of our own."""
        files = self.backend.files
        if files is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="memories-")
            files = DocumentFiles(Path(self._temporary.name))
        return files

    def _read_layer(self, document: Document, layer: int) -> tuple[np.ndarray, np.ndarray]:
        if self._temporary is not None and not self._files.has(document.uid):
            self._fetch(document)
        damage = self._files.damage(document)
        if damage is not None:
            raise _damaged(document, damage)
        try:
            return self._files.read_layer(document.uid, layer)
        except MemoryStoreError:
            raise _damaged(document, "its file cannot be read") from None

    def _fetch(self, document: Document) -> None:
        """A copy of what a store without files has."""
        try:
            self._files.write(document.uid, self.backend.payload(document.uid))
        except MissingPayloadError:
            reason = self._missing[document.uid] = "the store has lost it"
            raise _damaged(document, reason) from None
        except MemoryStoreError as error:
            error.message = f"{error.message} (collection {document.collection!r})"
            raise
        damage = self._files.damage(document)
        if damage is not None:
            self._missing[document.uid] = damage
            self._files.remove(document.uid)
            raise _damaged(document, damage)
        self._missing.pop(document.uid, None)


def _damaged(document: Document, reason: str) -> DamagedMemoriesError:
    return DamagedMemoriesError(
        f"The collection {document.collection!r} cannot be used: document {document.id!r} is "
        f"damaged ({reason}). Remove the document, or add it again.",
        param="memory.collections",
    )
