"""A Listener: what the engine's thread says of one sound, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from mlx_parallm.errors import ParallmError, RequestTimeoutError

if TYPE_CHECKING:
    from mlx_parallm.engine.audio.transcription import Transcription
    from mlx_parallm.models.audio.segments import Segment

    News = list[Segment] | ParallmError | None
    # (on_segments, on_end) -> what was begun.
    Start = Callable[
        [Callable[[list[Segment]], None], Callable[[ParallmError | None], None]], Transcription
    ]


class Listener:
    """Waits for the segments of a transcription.

    Args:
        start: begins with it, given what to call with its segments, and at its end.
        seconds: of the sound. name_of: the English name of a language's code.
        timeout_s: after which it is given up.
    """

    def __init__(
        self,
        start: Start,
        seconds: float,
        name_of: Callable[[str], str],
        timeout_s: float | None,
    ) -> None:
        self.seconds = seconds
        self._name_of = name_of
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Queue[News] = asyncio.Queue()
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else self._loop.time() + timeout_s
        self._transcription = start(self._tell, self._tell)

    @property
    def language(self) -> str:
        """The name of the one that was heard, or wished."""
        return self._name_of(self._transcription.language or "en")

    def cancel(self) -> None:
        """Nobody waits any more."""
        self._transcription.cancel()

    async def windows(self) -> AsyncGenerator[list[Segment]]:
        """The segments of each window. Who stops reading ends the transcription.

        Raises:
            ParallmError: what went wrong with it.
        """
        try:
            while (news := await self._next()) is not None:
                if isinstance(news, ParallmError):
                    raise news
                yield news
        finally:
            self.cancel()

    async def _next(self) -> News:
        try:
            async with asyncio.timeout_at(self._deadline):
                return await self._news.get()
        except TimeoutError:
            raise RequestTimeoutError(
                f"The request was not finished within {self._timeout_s:g} seconds."
            ) from None

    def _tell(self, news: News) -> None:
        """On the engine's thread."""
        with suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._news.put_nowait, news)
