"""Downloads as server-sent events: how far, then where it is or why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from mlx_parallm.errors import ModelLoadError, NotFoundError
from mlx_parallm.models.sources.progress import LoadProgress, watcher
from mlx_parallm.models.sources.sources import fetch_source
from mlx_parallm.server.output.formats import DONE, compact

_EVERY_S = 0.25


class Pull:
    """One download, on a thread. On the event loop.

    Args:
        done: called once the model is here.
    """

    def __init__(self, model: str, revision: str | None, done: Callable[[], None]) -> None:
        self.model = model
        self.revision = revision
        self.progress = LoadProgress()
        self._done = done
        token = watcher.set(self.progress)
        self._job = asyncio.create_task(asyncio.to_thread(fetch_source, model, revision))
        watcher.reset(token)
        self._job.add_done_callback(self._ended)

    def _ended(self, job: asyncio.Task[Any]) -> None:
        if not job.cancelled() and job.exception() is None and not self.progress.stopped:
            self._done()

    def cancel(self) -> None:
        """What came so far is kept, and continued by the next pull of the same model."""
        self.progress.stopped = True

    @property
    def card(self) -> dict[str, Any]:
        """As answers show it."""
        return {
            "model": self.model,
            "revision": self.revision,
            "completed": self.progress.completed,
            "total": self.progress.total,
        }

    async def events(self) -> AsyncIterator[bytes]:
        """Until it ends; who goes away does not end it, and others may look on, too."""
        shown: tuple[int, int] | None = None
        while not (self._job.done() or self.progress.stopped):
            now = self.progress.completed, self.progress.total
            if shown != now:
                shown = now
                yield _event(status="downloading", completed=now[0], total=now[1])
            await asyncio.wait([self._job], timeout=_EVERY_S)
        yield self._last_event()
        yield DONE

    def _last_event(self) -> bytes:
        if self.progress.stopped:
            return _event(status="cancelled", model=self.model)
        try:
            self._job.result()
        except ModelLoadError as error:
            return _event(status="error", error={"message": str(error), "code": "pull_failed"})
        return _event(status="success", model=self.model)

    @property
    def is_running(self) -> bool:
        """Whether it may still bring the model."""
        return not (self._job.done() or self.progress.stopped)


class Pulls:
    """All downloads of a server that are on their way."""

    def __init__(self) -> None:
        self._pulls: list[Pull] = []

    @property
    def running(self) -> list[Pull]:
        """The oldest first."""
        self._pulls = [pull for pull in self._pulls if pull.is_running]
        return self._pulls

    def start(self, model: str, revision: str | None, done: Callable[[], None]) -> Pull:
        """Begin a download, or join the one that brings the same."""
        for pull in self.running:
            if (pull.model, pull.revision) == (model, revision):
                return pull
        self.running.append(pull := Pull(model, revision, done))
        return pull

    def cancel(self, model: str) -> Pull:
        """End a download.

        Raises:
            NotFoundError: none brings this model.
        """
        for pull in self.running:
            if pull.model == model:
                pull.cancel()
                return pull
        raise NotFoundError(f"No download of {model[:200]!r} is on its way.", param="model")

    def cancel_all(self) -> None:
        """End them all."""
        for pull in self.running:
            pull.cancel()


def _event(**fields: Any) -> bytes:
    return f"data: {compact(fields)}\n\n".encode()
