"""Downloads as server-sent events: how far, then where it is or why not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.sources.progress import watcher
from mlx_parallm.models.sources.sources import fetch_source
from mlx_parallm.server.output.formats import DONE, compact

_EVERY_S = 0.25


async def pull_events(
    model: str, revision: str | None, done: Callable[[], None]
) -> AsyncIterator[bytes]:
    """Events of one download; a client that goes away does not end it.

    Args:
        done: called once the model is here, before the last event.
    """
    progress = [0, 0]

    def watch(completed: int, total: int) -> None:
        progress[:] = completed, total

    token = watcher.set(watch)
    job = asyncio.create_task(asyncio.to_thread(fetch_source, model, revision))
    watcher.reset(token)
    job.add_done_callback(lambda ended: None if ended.cancelled() else ended.exception())
    shown: list[int] | None = None
    while not job.done():
        if shown != progress:
            shown = list(progress)
            yield _event(status="downloading", completed=shown[0], total=shown[1])
        await asyncio.wait([job], timeout=_EVERY_S)
    try:
        job.result()
    except ModelLoadError as error:
        yield _event(status="error", error={"message": str(error), "code": "pull_failed"})
    else:
        done()
        yield _event(status="success", model=model)
    yield DONE


def _event(**fields: Any) -> bytes:
    return f"data: {compact(fields)}\n\n".encode()
