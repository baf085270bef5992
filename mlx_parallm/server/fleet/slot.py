"""A Slot: one model of the fleet, loaded or not."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Literal

from fastapi import FastAPI

from mlx_parallm.errors import ConflictError, ParallmError, UnavailableError
from mlx_parallm.models.device_memory import give_memory_back
from mlx_parallm.server.admin import without_folders
from mlx_parallm.server.fleet.catalog import Entry
from mlx_parallm.server.state import ServerState

logger = logging.getLogger(__name__)

Status = Literal["unloaded", "loading", "ready", "unloading", "failed"]
# (entry, on_ready, on_failure) -> the application of one model.
MakeApp = Callable[[Entry, Callable[[ServerState], None], Callable[[Exception], None]], FastAPI]


class Slot:
    """Loads and unloads one model. Everything runs on the event loop.

    Attributes:
        status: "failed" may be tried again. error: why it failed.
        users: requests that are being answered by it. used_at: when the last one ended.
        created: when it was listed, in seconds since 1970.
    """

    def __init__(self, entry: Entry, make_app: MakeApp) -> None:
        self.entry = entry
        self.status: Status = "unloaded"
        self.error: str | None = None
        self.users = 0
        self.used_at = time.monotonic()
        self.created = int(time.time())
        self._make_app = make_app
        self._app: FastAPI | None = None
        self._lifespan: AbstractAsyncContextManager[object] | None = None
        self._loaded: asyncio.Future[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    @property
    def app(self) -> FastAPI:
        """The application of the loaded model.

        Raises:
            UnavailableError: it is not loaded.
        """
        if self._app is None:
            raise UnavailableError(f"The model {self.entry.name!r} is not loaded.")
        return self._app

    @property
    def state(self) -> ServerState | None:
        """What its routes share; None where it is not loaded."""
        return None if self._app is None else self._app.state.server

    @property
    def loaded_state(self) -> ServerState:
        """As state.

        Raises:
            UnavailableError: it is not loaded.
        """
        state: ServerState = self.app.state.server
        return state

    @property
    def progress(self) -> dict[str, Any] | None:
        """How far the loading is, in bytes; None where nothing is loading, or nothing is known."""
        if self.status != "loading" or self.state is None or not self.state.progress.step:
            return None
        now = self.state.progress
        return {"step": now.step, "completed": now.completed, "total": now.total}

    @property
    def nbytes(self) -> int:
        """Of its weights in memory, or what they will take, by their files."""
        loaded = None if self.state is None else self.state.engine.loaded
        return self.entry.bytes_on_disk if loaded is None else loaded.nbytes

    async def load(self) -> None:
        """Load the model, unless it is; several callers wait for the same.

        Raises:
            UnavailableError: it cannot be loaded; says why.
        """
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load())
            self._loading.add_done_callback(_look)
        # Who goes away does not end it for the others.
        await asyncio.shield(self._loading)

    async def _load(self) -> None:
        async with self._changing:
            if self.status == "ready":
                return
            logger.info("loading %s", self.entry.name)
            self.status, self.error = "loading", None
            self._loaded = asyncio.get_running_loop().create_future()
            try:
                await self._start(self._loaded)
            except Exception as error:
                await self._stop()
                self.status, self.error = "failed", str(error)
                logger.error("%s cannot be loaded: %s", self.entry.name, error)
                if not isinstance(error, ParallmError):
                    raise
                why = without_folders(str(error))
                raise UnavailableError(
                    f"The model {self.entry.name!r} cannot be loaded: {why}"
                ) from None
            self.status = "ready"

    def give_up(self, error: Exception) -> None:
        """End the loading of the model with an error, if it is under way."""
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_exception(error)

    async def _start(self, loaded: asyncio.Future[None]) -> None:
        def on_failure(error: Exception) -> None:
            if not loaded.done():
                loaded.set_exception(error)

        def on_ready(state: ServerState) -> None:
            if not loaded.done():
                loaded.set_result(None)

        self._app = self._make_app(self.entry, on_ready, on_failure)
        self._lifespan = self._app.router.lifespan_context(self._app)
        await self._lifespan.__aenter__()
        await loaded

    async def unload(self, *, force: bool = False) -> None:
        """Free the model's memory.

        Args:
            force: also while it is used.

        Raises:
            ConflictError: requests are being answered by it.
        """
        async with self._changing:
            if self.users and not force:
                raise ConflictError(
                    f"{self.users} requests are being answered by {self.entry.name!r}."
                )
            if self.status != "ready":
                return
            logger.info("unloading %s", self.entry.name)
            self.status = "unloading"
            await self._stop()
            self.status = "unloaded"

    async def _stop(self) -> None:
        lifespan, self._lifespan = self._lifespan, None
        try:
            if lifespan is not None:
                await lifespan.__aexit__(None, None, None)
        finally:
            self._app = None
            await asyncio.to_thread(give_memory_back)

    @asynccontextmanager
    async def used(self) -> AsyncIterator[FastAPI]:
        """While a request is answered the model stays."""
        self.users += 1
        try:
            yield self.app
        finally:
            self.users -= 1
            self.used_at = time.monotonic()


def _look(task: asyncio.Task[None]) -> None:
    """A failure that nobody waits for any more is not one that nobody looked at."""
    if not task.cancelled():
        task.exception()
