"""A replica of the server: the unchanged application of create_app(), with its engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, nullcontext

from ray import serve
from starlette.types import ASGIApp, Message, Scope

from mlx_parallm.errors import ParallmError, UnavailableError
from mlx_parallm.on_ray.adapters import HeldAdapters
from mlx_parallm.on_ray.router import SEQUENCES
from mlx_parallm.server.handlers import error_response
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings


class Replica:
    """What Ray starts, asks and ends.

    Args:
        adapters: name -> folder, read when they are asked for.
    """

    async def __init__(self, settings: Settings, adapters: Mapping[str, str]) -> None:  # type: ignore[misc]
        """Load the model; a replica that is there answers.

        Raises:
            ModelLoadError: it cannot be loaded.
        """
        self._failure: str | None = None
        ready = asyncio.get_running_loop().create_future()
        self._app = create_app(
            settings,
            on_ready=ready.set_result,
            on_failure=ready.set_exception,
            on_engine_failure=self._fail,
        )
        self._running = AsyncExitStack()
        await self._running.enter_async_context(self._app.router.lifespan_context(self._app))
        self._state = await ready
        self._adapters = HeldAdapters(lambda: self._state.adapters, adapters, settings.max_loras)

    def _fail(self, reason: str) -> None:
        self._failure = reason

    async def check_health(self) -> None:
        """Called by Ray, which replaces a replica whose engine has failed or stalls.

        Raises:
            UnavailableError: it has, or does.
        """
        engine = self._state.engine
        reason = (
            self._failure or engine.stalled or (engine.reason if engine.state != "ready" else None)
        )
        if reason:
            raise UnavailableError(f"the engine cannot answer: {reason}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Called by Ray: sequences that are computed here or wait."""
        stats = self._state.engine.stats()
        return {SEQUENCES: float(stats.running + stats.waiting + len(self._state.queue))}

    async def answer(
        self, scope: Scope, body: bytes, _beginning: str
    ) -> AsyncGenerator[Message, None]:
        """The messages of ASGI that answer a request; its prompt's beginning is for the router."""
        try:
            async with self._adapter(), aclosing(messages_of(self._app, scope, body)) as messages:
                async for message in messages:
                    yield message
        except ParallmError as error:  # of the adapter; the application answers its own
            async for message in messages_of(error_response(error, scope), scope, body):
                yield message

    def _adapter(self) -> AbstractAsyncContextManager[None]:
        """Has the adapter here that the request asks for, if any."""
        name = serve.get_multiplexed_model_id()
        return self._adapters.using(name) if name else nullcontext()

    async def __del__(self) -> None:
        """Called by Ray once nobody waits: stop the engine."""
        await self._running.aclose()


async def messages_of(app: ASGIApp, scope: Scope, body: bytes) -> AsyncGenerator[Message, None]:
    """What an application answers, message by message; closing it is a client that leaves."""
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    given, gone = False, asyncio.Event()

    async def receive() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    async def run() -> None:
        try:
            await app(scope, receive, messages.put)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
    finally:
        gone.set()
        await task
