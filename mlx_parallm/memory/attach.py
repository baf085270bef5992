"""Memories in Python: `model.add_memories(tokens)` and what `generate` is told about them."""

from __future__ import annotations

from collections.abc import Sequence as Items
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.memory.backends.stores import open_backend
from mlx_parallm.memory.document import Document
from mlx_parallm.memory.job import MemoryJob
from mlx_parallm.memory.manager import (
    DEFAULT_COLLECTION,
    MemoryManager,
    MemorySettings,
)
from mlx_parallm.memory.request import MemoryRequest
from mlx_parallm.memory.submission import Source

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import Engine

_POLL_S = 0.1


class ModelMemories:
    """The memories of a model that was loaded in Python.

    Args:
        folder: keeps them after the process has ended; None keeps them in memory only.
        store: an address as for `--memory-store`.
        budget: bytes held ready at most.

    Raises:
        UnsupportedError: the model cannot use memories.
    """

    def __init__(
        self,
        engine: Engine,
        folder: str | Path | None = None,
        store: str | None = None,
        budget: int | None = None,
    ) -> None:
        backend = open_backend(store, None if folder is None else Path(folder).expanduser())
        self.manager = MemoryManager(engine, backend, budget)
        self.model_id = DEFAULT_COLLECTION
        self.manager.check_model()

    def bind(self, model: Any) -> None:
        """Give the model its methods."""
        model.memories = self
        model.add_memories = MethodType(_add_memories, model)
        model.set_model_id = MethodType(_set_model_id, model)

    def add(
        self,
        content: Any,
        collection: str | None = None,
        *,
        id: str | None = None,
        metadata: dict[str, Any] | None = None,
        window: int | None = None,
        stride: int | None = None,
        verbose: bool = False,
    ) -> MemoryJob:
        """Make memories and wait for them.

        Args:
            content: a text, or token ids as a list or an array.
            collection: default: the model id.
            id: of the document; metadata: comes back with citations.
            window, stride: see MemoryManager.add.
            verbose: show a progress bar.

        Returns:
            the job, with what is `stored`.
        """
        if not isinstance(content, str):
            content = np.array(content).reshape(-1).tolist()
        source = Source(content, id, metadata or {})
        job = self.manager.add([source], collection or self.model_id, window, stride)
        with tqdm(total=job.total, disable=not verbose, unit="token", desc="memories") as bar:
            while not job.ended.wait(_POLL_S):
                bar.update(job.done - bar.n)
            bar.update(job.done - bar.n)
        job.wait(0)
        return job

    def request(self, asked: Any) -> MemoryRequest | None:
        """What generate's `memory` means.

        Args:
            asked: None is the model id's collection, where it exists; False is no memories;
                a name, names, or a dict with "collections" and MemoryRequest's settings.
        """
        if asked is False:
            return None
        if asked is None or asked is True:
            known = [collection.name for collection in self.manager.collections()]
            if asked is None and self.model_id not in known:
                return None
            asked = [self.model_id]
        if isinstance(asked, str):
            asked = [asked]
        if not isinstance(asked, dict):
            asked = {"collections": asked}
        asked = dict(asked)
        names: Items[str] = asked.pop("collections", [self.model_id])
        if asked.get("layers") is not None:
            asked["layers"] = tuple(asked["layers"])
        try:
            settings = MemorySettings(**asked)
        except TypeError:
            raise InvalidRequestError(
                f"memory has no setting like one of {sorted(asked)}", param="memory"
            ) from None
        return self.manager.request(names, settings)

    def close(self) -> None:
        """Give everything back."""
        self.manager.close()


def _add_memories(
    model: Any, tokens: Any, collection: str | None = None, **options: Any
) -> Document:
    """Make memories of a text or of token ids, and return what is stored of it.

    See ModelMemories.add for the options.
    """
    job: MemoryJob = model.memories.add(tokens, collection, **options)
    return job.stored[0]


def _set_model_id(model: Any, model_id: str) -> None:
    """Name the collection that add_memories and generate use from now on."""
    model.memories.model_id = model_id
