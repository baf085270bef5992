"""A bound on how many requests are parsed in one turn of the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

_A_TURN = 16


class ReadPace:
    """Runs short pieces of work in the order in which they came, a few in each turn of the loop.

    Two thousand requests that come at once take a second or two to be parsed and refused. In
    between, the loop accepts new connections, and what is urgent goes first.
    """

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._done = 0
        self._turning = False

    def run(self, work: Callable[[], None]) -> None:
        """Run it now, or in one of the next turns where many came before it."""
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._turn)
        if self._waiting or self._done >= _A_TURN:
            self._waiting.append(work)
        else:
            self._done += 1
            work()

    def _turn(self) -> None:
        self._done = 0
        if not self._waiting:
            self._turning = False
            return
        # First, so that a piece of work that raises stops nothing but itself.
        asyncio.get_running_loop().call_soon(self._turn)
        while self._waiting and self._done < _A_TURN:
            self._done += 1
            self._waiting.popleft()()
