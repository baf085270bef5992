"""The Fleet: which models are loaded, and who has to go when memory is short."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from mlx_parallm.errors import (
    ConflictError,
    NotFoundError,
    OutOfMemoryError,
    ParallmError,
    UnavailableError,
)
from mlx_parallm.server.admin import without_folders
from mlx_parallm.server.fleet.catalog import Entry
from mlx_parallm.server.fleet.pull import Pulls
from mlx_parallm.server.fleet.slot import MakeApp, Slot

logger = logging.getLogger(__name__)
_SWEEP_S = 1.0


class Fleet:
    """All models of one server.

    Args:
        entries: the first one is meant where a request names none.
        make_app: makes the application of one model.
        memory: bytes that the weights of all loaded models may take.
        ttl_s: a model that nobody used for so long is unloaded; None: never.
        waits: whether a request waits for its model to be loaded; else it gets a 503.

    Attributes:
        memory: as given. pulls: downloads on their way.
        draining: new requests are refused. started: start() has ended well.
    """

    def __init__(
        self,
        entries: Iterable[Entry],
        make_app: MakeApp,
        *,
        memory: int,
        ttl_s: float | None = None,
        waits: bool = True,
    ) -> None:
        self._make_app = make_app
        self.memory = memory
        self._ttl_s = ttl_s
        self._waits = waits
        self._slots = {entry.name: Slot(entry, make_app) for entry in entries}
        self._making_room = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self.pulls = Pulls()
        self.draining = False
        self.started = False

    @property
    def slots(self) -> list[Slot]:
        """All models, the first one first."""
        return list(self._slots.values())

    @property
    def memory_used(self) -> int:
        """Bytes of the weights of all loaded models."""
        return sum(slot.nbytes for slot in self.slots if slot.status == "ready")

    def add(self, entry: Entry) -> Slot:
        """List one more model, unless there is one of that name."""
        return self._slots.setdefault(entry.name, Slot(entry, self._make_app))

    def find(self, name: str) -> Slot | None:
        """The model that a request's `model` means: by its name, or by that of an adapter of it."""
        if not name:
            return self.slots[0]
        tagged = name.removesuffix(":latest")
        for slot in self.slots:
            if name == slot.entry.name or tagged == slot.entry.name:
                return slot
        for slot in self.slots:
            if slot.state is None:
                continue
            if name in slot.state.settings.model_names or name in slot.state.adapters:
                return slot
        return None

    def get(self, name: str) -> Slot:
        """As find().

        Raises:
            NotFoundError: there is none.
        """
        slot = self.find(name)
        if slot is None:
            names = ", ".join(repr(one.entry.name) for one in self.slots[:20])
            raise NotFoundError(
                f"The model {name[:200]!r} does not exist; this server has {names}.",
                param="model",
                code="model_not_found",
            )
        return slot

    @asynccontextmanager
    async def using(self, slot: Slot) -> AsyncIterator[FastAPI]:
        """The application of a model, loaded if it has to be; it stays while it is used.

        Raises:
            UnavailableError: it cannot be loaded, or is loading and requests do not wait.
            OutOfMemoryError: models that are being used leave no room for it.
        """
        # From here on nobody unloads it.
        slot.users += 1
        try:
            if slot.status != "ready":
                await self._bring(slot)
            async with slot.used() as app:
                yield app
        finally:
            slot.users -= 1

    async def _bring(self, slot: Slot) -> None:
        if self._waits:
            await self.load(slot)
            return
        if slot.status not in ("loading", "failed"):
            self._in_background(slot)
        elif slot.status == "failed":
            error = without_folders(slot.error or "")
            self._in_background(slot)
            raise UnavailableError(f"The model {slot.entry.name!r} could not be loaded: {error}")
        raise UnavailableError(f"The model {slot.entry.name!r} is loading.")

    def _in_background(self, slot: Slot) -> None:
        async def load() -> None:
            with suppress(ParallmError):
                await self.load(slot)

        task = asyncio.create_task(load())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def load(self, slot: Slot) -> None:
        """Load a model; those that were not used for longest go where memory is short.

        Raises:
            UnavailableError, OutOfMemoryError: as using().
        """
        if self.draining:
            raise UnavailableError("The server is shutting down.")
        if slot.status != "ready":
            async with self._making_room:
                await self._make_room(slot)
                await slot.load()

    async def _make_room(self, slot: Slot) -> None:
        while True:
            loaded = [s for s in self.slots if s is not slot and s.status == "ready"]
            if not loaded or sum(s.nbytes for s in loaded) + slot.nbytes <= self.memory:
                return
            idle = [s for s in loaded if _may_go(s)]
            if not idle:
                raise OutOfMemoryError(
                    f"There is no memory for {slot.entry.name!r} beside the models in use.",
                    param="model",
                )
            with suppress(ConflictError):  # somebody came while the one before was unloaded
                await min(idle, key=lambda s: s.used_at).unload()

    async def start(self) -> None:
        """Load the first model and those that are pinned, and look after the idle ones.

        Raises:
            UnavailableError: one cannot be loaded.
        """
        for slot in self.slots:
            if slot.entry.pinned or slot is self.slots[0]:
                await self.load(slot)
        self.started = True
        if self._ttl_s is not None:
            task = asyncio.create_task(self._unload_idle(self._ttl_s))
            self._tasks.add(task)

    async def _unload_idle(self, ttl_s: float) -> None:
        while True:
            await asyncio.sleep(min(_SWEEP_S, ttl_s))
            for slot in self.slots:
                idle_s = time.monotonic() - slot.used_at
                if _may_go(slot) and idle_s >= ttl_s:
                    with suppress(ConflictError):
                        await slot.unload()

    # As Runner and Admission see a ServerState

    @property
    def capacity(self) -> int:
        """Requests that can be inside at the same time, of all loaded models."""
        found = [slot.state.capacity for slot in self.slots if slot.state is not None]
        return max(1024, sum(found))

    def drain(self) -> None:
        """Refuse new requests and let the accepted ones finish."""
        self.draining = True
        for slot in self.slots:
            if slot.state is not None:
                slot.state.drain()

    def answer_all(self, error: ParallmError) -> None:
        """End every request that still waits, with an error."""
        for slot in self.slots:
            slot.give_up(error)
            if slot.state is not None:
                slot.state.answer_all(error)

    async def stop(self) -> None:
        """Unload everything, whoever still uses it."""
        self.draining = True
        self.pulls.cancel_all()
        for task in self._tasks:
            task.cancel()
        for slot in self.slots:
            await slot.unload(force=True)


def _may_go(slot: Slot) -> bool:
    return slot.status == "ready" and not slot.users and not slot.entry.pinned
