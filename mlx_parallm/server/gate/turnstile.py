"""One request per turn of the event loop, so that many at once do not delay other work."""

from __future__ import annotations

import asyncio
from collections import deque


class Turnstile:
    """In front of work that blocks the event loop for a millisecond or two (parse, tokenize).

    Between two that pass, the loop looks at all sockets: so /health, refusals and the events of
    streams do not wait behind a thousand requests that came at once.
    """

    def __init__(self) -> None:
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._turning = False

    async def enter(self) -> None:
        """Return when it is this request's turn: at once where no other has just passed."""
        loop = asyncio.get_running_loop()
        if self._turning:
            turn = loop.create_future()
            self._waiting.append(turn)
            await turn
            return
        self._turning = True
        loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its client has gone
                turn.set_result(None)
                loop.call_soon(self._turn, loop)
                return
        self._turning = False
