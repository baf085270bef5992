"""A log that an attack cannot fill."""

from __future__ import annotations

import logging
from time import monotonic


class OncePerMinute(logging.Filter):
    """Lets each kind of message through once a minute, with how many were left out before it.

    A kind is the first line of a message before its arguments are put in.
    """

    def __init__(self, period_s: float = 60.0) -> None:
        super().__init__()
        self._period_s = period_s
        self._next: dict[str, float] = {}
        self._left_out: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = str(record.msg).partition("\n")[0][:200], monotonic()
        if now < self._next.get(kind, 0.0):
            self._left_out[kind] = self._left_out.get(kind, 0) + 1
            return False
        self._next[kind] = now + self._period_s
        if count := self._left_out.pop(kind, 0):
            record.msg = f"{record.getMessage()} ({count} more like this since the last)"
            record.args = ()
        return True
