"""The queue of requests that do not stream: those that arrive together start together.

Requests that stream bypass it; both kinds meet in the engine's running batch.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from mlx_parallm.errors import ParallmError, SequenceError, UnavailableError
from mlx_parallm.server.flow.dispatch import Dispatcher
from mlx_parallm.server.flow.generation import Collected

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request that waits for the engine; its future is answered exactly once."""

    generation: Collected

    @property
    def future(self) -> asyncio.Future[None]:
        """Done when the answer is complete; raises what went wrong."""
        return self.generation.done


class RequestQueue:
    """An asyncio.Queue and the worker that empties it into the engine.

    Args:
        batch_timeout_s: how long an idle engine waits for more requests to start with. A busy
            one is never waited for: what comes joins its running batch at the next step.
        max_group: sequences after which waiting for more is pointless.
    """

    def __init__(self, dispatcher: Dispatcher, batch_timeout_s: float, max_group: int) -> None:
        self._dispatcher = dispatcher
        self.batch_timeout_s = batch_timeout_s
        self._max_group = max_group
        self._queue: asyncio.Queue[QueuedRequest] = asyncio.Queue()
        self._closed: ParallmError | None = None

    def __len__(self) -> int:
        return self._queue.qsize()

    def put(self, generation: Collected) -> asyncio.Future[None]:
        """Queue a request; the future is done when its answer is complete."""
        if self._closed is not None:
            generation.fail(self._closed)
        else:
            self._queue.put_nowait(QueuedRequest(generation))
        return generation.done

    def close(self, error: ParallmError) -> None:
        """Answer all that wait, and all that still come, with an error."""
        self._closed = error
        for request in self._drain():
            request.generation.fail(error)

    async def batch_processing_worker(self) -> None:
        """Drain the queue for ever, handing whole groups to the engine."""
        while True:
            group = await self._next_group()
            try:
                self._submit(group)
            except Exception:
                # The worker outlives whatever a group does to it.
                logger.exception("a group of requests could not be submitted")
                for request in group:
                    request.generation.fail(SequenceError("The server failed on this request."))

    async def _next_group(self) -> list[QueuedRequest]:
        group = [await self._queue.get()]
        try:
            waits = self.batch_timeout_s and not group[0].generation.at_once
            if waits and self._dispatcher.idle:
                await self._wait_for_more(group)
        except asyncio.CancelledError:
            # Cancelled between taking these and submitting them: they still get an answer.
            for request in group:
                request.generation.fail(UnavailableError("The server is shutting down."))
            raise
        return group + self._drain()

    async def _wait_for_more(self, group: list[QueuedRequest]) -> None:
        try:
            async with asyncio.timeout(self.batch_timeout_s):
                while sum(len(one.generation.tracks) for one in group) < self._max_group:
                    group.append(await self._queue.get())
        except TimeoutError:
            return

    def _drain(self) -> list[QueuedRequest]:
        return [self._queue.get_nowait() for _ in range(self._queue.qsize())]

    def _submit(self, group: list[QueuedRequest]) -> None:
        # Who has gone away or timed out while waiting is not started.
        waiting = [one.generation for one in group if not one.generation.ended]
        try:
            if waiting:
                self._dispatcher.submit(waiting)
        except ParallmError as error:
            if len(waiting) == 1:
                waiting[0].fail(error)
                return
            # Not all of them fit: each on its own, in order, so that those who do are served.
            for request in group:
                self._submit([request])
