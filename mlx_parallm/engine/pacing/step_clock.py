"""The StepClock: how long steps take, from one reading to the next. No mlx here."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Timed:
    """What was measured between two readings.

    Attributes:
        seconds: how long it took.
        tokens: computed by the device in that time.
        own: whether nothing else was done in that time.
    """

    seconds: float
    tokens: int
    own: bool


class StepClock:
    """Times steps; a step may be launched while the one before is still computing.

    Args:
        eager: launching a step computes most of it, as on a CPU; elsewhere the device
            computes while the host goes on.
    """

    def __init__(self, *, eager: bool) -> None:
        self._eager = eager
        self._read_at: float | None = None
        self._unread = 0
        self._start_again()

    def _start_again(self) -> None:
        self._launches = 0
        self._tokens = 0
        self._besides = 0.0  # seconds of these launches before their forward
        self._disturbed = False

    def rest(self) -> None:
        """Nothing runs: the time until the next step is not its own."""
        self._read_at = None

    def interrupted(self, seconds: float) -> None:
        """Something else took so long, between two steps."""
        self._besides += seconds
        self._disturbed = True

    def launched(self, tokens: int, *, alone: bool, besides: float) -> bool:
        """A step was launched; returns whether it waited for the one before to be read.

        alone: its rows neither came nor went; besides: seconds that it took before its forward.
        """
        # This time also counts for the step before, if that is not read yet.
        self._launches += 1
        self._tokens = tokens
        self._besides += besides
        self._disturbed = self._disturbed or not alone
        self._unread += 1
        return self._unread == 1

    def read(self, began: float, tokens: int, *, waited: bool) -> Timed:
        """A step of so many tokens was read.

        began: when it was launched.
        """
        now = time.perf_counter()
        seconds = now - (began if self._read_at is None else self._read_at)
        self._read_at = now
        self._unread -= 1
        # One launch is in a step's time: its own, or that of the next step if it came first.
        own = self._launches == 1 and not self._disturbed
        if waited and self._launches == 1:
            # Time spent before its forward is known; it waited for no computation.
            seconds, own = seconds - self._besides, True
        timed = Timed(seconds, self._tokens if self._eager else tokens, own)
        self._start_again()
        return timed
