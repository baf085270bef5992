"""The Watchdog: notices that the engine's thread has been at one thing for too long."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Task:
    """What the watched thread does, and since when (time.monotonic())."""

    what: str
    since: float


class Watchdog:
    """Watches one thread from another, so that a blocked one is noticed.

    Args:
        limit_s: seconds that a task may take; 0 watches nothing.
        on_stall: called once for each task that takes longer, on the watchdog's thread, with
            the reason.
    """

    def __init__(self, limit_s: float, on_stall: Callable[[str], None]) -> None:
        self._limit_s = limit_s
        self._on_stall = on_stall
        self._task: _Task | None = None
        self._told: _Task | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Watch the calling thread."""
        if self._limit_s:
            watched = threading.get_ident()
            threading.Thread(
                target=self._watch, args=(watched,), name="mlx-watchdog", daemon=True
            ).start()

    def stop(self) -> None:
        """Watch no more."""
        self._task = None
        self._stopped.set()

    def begin(self, what: str) -> None:
        """The thread begins with something new; `what` ends a sentence about it."""
        self._task = _Task(what, time.monotonic())

    def rest(self) -> None:
        """The thread waits for work, for as long as that takes."""
        self._task = None

    @property
    def stalled(self) -> str | None:
        """Why the thread is not well now; None where it is."""
        task = self._task
        if not self._limit_s or task is None:
            return None
        seconds = time.monotonic() - task.since
        if seconds < self._limit_s:
            return None
        return (
            f"the engine has been busy with {task.what} for {seconds:.0f} s; "
            f"--step-timeout is {self._limit_s:g} s"
        )

    def _watch(self, watched: int) -> None:
        while not self._stopped.wait(self._next_look_s()):
            task, reason = self._task, self.stalled
            if self._told is not None and task is not self._told:
                log.warning("the engine goes on")
                self._told = None
            if reason is not None and task is not self._told:
                self._told = task
                log.error("%s; its thread is here:\n%s", reason, _stack(watched))
                self._on_stall(reason)

    def _next_look_s(self) -> float:
        task = self._task
        if task is None or task is self._told:
            return self._limit_s / 4
        return max(self._limit_s / 100, task.since + self._limit_s - time.monotonic())


def _stack(thread: int) -> str:
    frame = sys._current_frames().get(thread)
    return "it has ended" if frame is None else "".join(traceback.format_stack(frame))
