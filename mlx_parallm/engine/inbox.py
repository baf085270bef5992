"""What other threads ask of the engine's thread, in order."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class Inbox:
    """Calls for the engine's thread. Any thread may put; only the engine's thread runs them.

    Args:
        before: called before each of them.
    """

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._at_rest: list[Callable[[], None]] = []

    def put(self, call: Callable[[], None]) -> None:
        """Run this between two steps; it must not raise."""
        self._calls.put(call)

    def ask(self, function: Callable[[], T], *, at_rest: bool) -> Future[T]:
        """Run a function between two steps; what it returns or raises is the future's.

        Args:
            at_rest: with no step in flight: all tokens so far are known.
        """
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - handed to the caller, whole
                future.set_exception(error)

        self._calls.put((lambda: self._at_rest.append(run)) if at_rest else run)
        return future

    @property
    def wants_rest(self) -> bool:
        """Whether calls wait for a moment without a step in flight."""
        return bool(self._at_rest)

    def wait(self) -> None:
        """Block until there is a call, and run it."""
        call = self._calls.get()
        self._before()
        call()

    def run(self) -> None:
        """Run all calls that are there."""
        while not self._calls.empty():
            self.wait()

    def run_at_rest(self) -> None:
        """Run the calls that wanted no step in flight."""
        calls, self._at_rest = self._at_rest, []
        for call in calls:
            call()

    def empty(self) -> None:
        """Run what was put before the engine stopped, so that nobody waits for ever."""
        while not self._calls.empty():
            try:
                self._calls.get()()
            except Exception:
                log.exception("left over when the engine stopped")
        self.run_at_rest()
