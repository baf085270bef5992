"""The Pulse: whether another rank is alive, and what it has to say at its end. No mlx here.

Each side sends a beat now and then on a connection of its own, from a thread that computes
nothing. So an ended process is noticed at once, and a stopped one after a while, whatever the
engine's thread waits for.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

_LONGEST_S = 1.0  # between two beats
_SLEPT = 4  # beats late: then this process was stopped itself


class Pulse:
    """Watches one other rank.

    Args:
        name: what reasons call it.
        limit_s: seconds of silence after which it counts as stopped; 0 is never.
        on_end: called once, on the pulse's thread, when it has ended or stopped: with the reason,
            and whether it may still be there.
    """

    def __init__(
        self, connection: Connection, name: str, limit_s: float, on_end: Callable[[str, bool], None]
    ) -> None:
        self._connection = connection
        self._name = name
        self._limit_s = limit_s
        self._on_end = on_end
        self._every_s = min(_LONGEST_S, limit_s / 8) if limit_s else _LONGEST_S
        self._sending = threading.Lock()
        self._expected = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rank-pulse", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def expect_end(self) -> None:
        """From now on its end is no failure."""
        self._expected.set()

    def say_failure(self, reason: str) -> None:
        """Tell the other one why this one ends."""
        self._send(reason)

    def _run(self) -> None:
        silent = False
        try:
            reason = self._watch()
            silent = reason is None
        except (EOFError, OSError):
            reason = f"{self._name} has ended"
        if not self._expected.is_set():
            limit = f"--step-timeout is {self._limit_s:g} s"
            self._on_end(reason or f"{self._name} is silent; {limit}", silent)

    def _watch(self) -> str | None:
        """What it says of its failure; None where it is silent, or is expected to end."""
        heard = beat = time.monotonic()
        while not self._expected.is_set():
            now = time.monotonic()
            if now >= beat:
                if now - beat > _SLEPT * self._every_s:
                    heard = now  # a process that was stopped itself has heard nobody
                self._send(None)
                beat = now + self._every_s
            if self._connection.poll(max(0.0, beat - now)):
                said: str | None = self._connection.recv()
                heard = time.monotonic()
                if said is not None:
                    return f"{self._name} failed: {said}"
            if self._limit_s and time.monotonic() - heard >= self._limit_s:
                return None
        return None

    def _send(self, said: str | None) -> None:
        try:
            with self._sending:
                self._connection.send(said)
        except OSError:
            return  # it has ended, which the thread notices
