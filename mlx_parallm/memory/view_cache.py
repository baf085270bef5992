"""The views that are held in memory: made when needed; the least recently used are dropped."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlx_parallm.memory.job import to_device
from mlx_parallm.memory.view import MemoryView, Position, build_layer

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np

    from mlx_parallm.engine.engine import Engine
    from mlx_parallm.memory.capture import Capture
    from mlx_parallm.memory.document import Document

ReadLayer = Callable[["Document", int], tuple["np.ndarray", "np.ndarray"]]


class ViewCache:
    """Views by their documents and position policy, within a budget of bytes.

    A dropped view stays alive while requests use it, and is made again from the
    documents' files when it is next needed. The newest one is never dropped.

    Args:
        read: K and V of one layer of a document.
        capture: knows how the model rotates keys; called on the engine's thread.
    """

    def __init__(
        self, engine: Engine, read: ReadLayer, capture: Callable[[], Capture], budget: int | None
    ) -> None:
        self.budget = budget
        self.loads = 0
        self._engine = engine
        self._read = read
        self._capture = capture
        self._views: OrderedDict[Any, MemoryView] = OrderedDict()
        self._lock = threading.Lock()
        self._building = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the views that are held."""
        with self._lock:
            return sum(view.nbytes for view in self._views.values())

    def held(self, documents: tuple[Document, ...], position: Position) -> MemoryView | None:
        """The view, if it needs no work."""
        with self._lock:
            view = self._views.get(_key(documents, position))
            if view is not None:
                self._views.move_to_end(view.key)
            return view

    def get(self, documents: tuple[Document, ...], position: Position) -> MemoryView:
        """The view, made where it is not held; not for the engine's thread.

        Layers are made one by one, so that decoding goes on between them.
        """
        with self._building:
            view = self.held(documents, position)
            if view is None:
                view = self._make(documents, position)
                with self._lock:
                    self._views[view.key] = view
                    self._shrink()
            return view

    def uids(self) -> set[str]:
        """Documents of which something is held."""
        with self._lock:
            return {document.uid for view in self._views.values() for document in view.documents}

    def forget(self, uid: str) -> None:
        """Drop every view of a document that was removed."""
        with self._lock:
            for key, view in list(self._views.items()):
                if any(document.uid == uid for document in view.documents):
                    del self._views[key]

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._views.clear()

    def _make(self, documents: tuple[Document, ...], position: Position) -> MemoryView:
        view = MemoryView(_key(documents, position), position, documents)
        for layer in range(documents[0].num_layers if documents else 0):
            # Files are read here, so that the engine's thread does not wait for a disk.
            parts = [(d.dtype, *self._read(d, layer)) for d in documents]

            def build(layer: int = layer, parts: list[Any] = parts) -> Any:
                made: list[tuple[mx.array, mx.array]] = [
                    (to_device(keys, dtype), to_device(values, dtype))
                    for dtype, keys, values in parts
                ]
                rotate = self._capture().rotate
                return build_layer(made, layer, position, rotate)

            view.layers.append(self._engine.call(build).result())
        self.loads += 1
        return view

    def _shrink(self) -> None:
        if self.budget is None:
            return
        total = sum(view.nbytes for view in self._views.values())
        while total > self.budget and len(self._views) > 1:
            _, oldest = self._views.popitem(last=False)
            total -= oldest.nbytes


def _key(documents: tuple[Document, ...], position: Position) -> tuple[Any, ...]:
    return (position, *(document.uid for document in documents))
