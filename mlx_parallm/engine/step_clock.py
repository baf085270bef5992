"""The StepClock: how long a step took, from the reading of one to that of the next. No mlx here."""

from __future__ import annotations

import time


class StepClock:
    """Times steps, of which one may be launched before the one before it is read."""

    def __init__(self) -> None:
        self._read_at: float | None = None
        self._unread = 0
        self._start_again()

    def _start_again(self) -> None:
        self._launches = 0
        self._besides = 0.0  # seconds of these launches before their decoding
        self._disturbed = False

    def rest(self) -> None:
        """Nothing runs: the time until the next step is not its own."""
        self._read_at = None

    def launched(self, *, alone: bool, besides: float) -> bool:
        """A step was launched; returns whether it waited for the one before to be read.

        alone: it only decodes; besides: seconds that it took before its decoding.
        """
        # Part of the time of the step before too, while that is not read.
        self._launches += 1
        self._besides += besides
        self._disturbed = self._disturbed or not alone
        self._unread += 1
        return self._unread == 1

    def read(self, began: float, *, waited: bool) -> tuple[float, bool]:
        """A step was read: its seconds, and whether they are its own and nothing else's.

        began: when it was launched.
        """
        now = time.perf_counter()
        seconds = now - (began if self._read_at is None else self._read_at)
        self._read_at = now
        self._unread -= 1
        # A step's time has one launch in it: its own, or of the step after, where that came first.
        own = self._launches == 1 and not self._disturbed
        if waited and self._launches == 1:
            # What came before decoding waited for nothing that was computing: known time.
            seconds, own = seconds - self._besides, True
        self._start_again()
        return seconds, own
