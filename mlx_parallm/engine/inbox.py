"""What other threads ask of the engine's thread, in order."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from mlx_parallm.engine.ranks.turn import Event
from mlx_parallm.errors import ParallmError

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry:
    """Something to run on the engine's thread.

    Attributes:
        run: must not raise.
        event: what it does, as data; None where it is for this process only.
    """

    run: Callable[[], None]
    at_rest: bool = False
    event: Event | None = None


class Inbox:
    """Entries for the engine's thread. Any thread may put; only the engine's thread runs them.

    Args:
        before: called before each of them.
    """

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self._before = before
        self._entries: queue.SimpleQueue[Entry] = queue.SimpleQueue()
        self._at_rest: list[Entry] = []

    def put(self, run: Callable[[], None], event: Event) -> None:
        """Run this between two steps; it must not raise."""
        self._entries.put(Entry(run, event.at_rest, event))

    def ask(
        self, function: Callable[[], T], *, at_rest: bool, event: Event | None = None
    ) -> Future[T]:
        """Run a function between two steps; what it returns or raises is the future's.

        Args:
            at_rest: with no step in flight: all tokens so far are known.
            event: what the function does, as data. Then it is done even if nobody waits for it
                any more, since every rank does it.
        """
        future: Future[T] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                if event is not None:
                    function()
                return
            try:
                future.set_result(function())
            except Exception as error:  # noqa: BLE001 - handed to the caller, whole
                future.set_exception(error)

        self._entries.put(Entry(run, at_rest, event))
        return future

    @property
    def wants_rest(self) -> bool:
        """Whether calls wait for a moment without a step in flight."""
        return bool(self._at_rest)

    def take(self, *, block: bool) -> list[Entry]:
        """All entries that are there.

        Args:
            block: wait for the first one.
        """
        taken = [self._entries.get()] if block else []
        while not self._entries.empty():
            taken.append(self._entries.get())
        return taken

    def run(self, entries: Iterable[Entry]) -> None:
        """Run entries; those that want no step in flight wait for `run_at_rest`."""
        for entry in entries:
            if entry.at_rest:
                self._at_rest.append(entry)
            else:
                self._before()
                entry.run()

    def run_at_rest(self) -> None:
        """Run the calls that wanted no step in flight."""
        entries, self._at_rest = self._at_rest, []
        for entry in entries:
            entry.run()

    def empty(self) -> None:
        """Run what was put before the engine stopped, so that nobody waits for ever."""
        for entry in self.take(block=False):
            try:
                entry.run()
            except Exception:
                log.exception("left over when the engine stopped")
        self.run_at_rest()


def entry_of(event: Event, engine: Any) -> Entry:
    """An event that another rank was asked for; what is refused is refused there too."""

    def run() -> None:
        try:
            event.apply(engine)
        except ParallmError as error:
            log.info("%s was refused: %s", type(event).__name__, error)

    return Entry(run, event.at_rest, event)
