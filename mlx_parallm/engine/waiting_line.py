"""Sequences that wait for a row, in the order in which they get one. No mlx here."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator

from mlx_parallm.engine.client import Client
from mlx_parallm.engine.fairness import Shares
from mlx_parallm.engine.sequence import Sequence, Status

# (behind those that were put first, priority, arrival, tie)
_Place = tuple[bool, int, float, int]
_Waiting = tuple[_Place, Sequence]


class WaitingLine:
    """One line for each client; `shares` says whose head is next.

    Sequences that have ended while they waited are dropped when they come up.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._lines: dict[Client | None, list[_Waiting]] = {}
        self._ties = itertools.count()

    def __iter__(self) -> Iterator[Sequence]:
        """All that wait, in no order."""
        for line in self._lines.values():
            yield from (s for _, s in line if s.status is Status.WAITING)

    @property
    def clients(self) -> list[Client | None]:
        """Those with a line."""
        return list(self._lines)

    def push(self, sequence: Sequence, *, first: bool = False) -> None:
        """Let a sequence wait; `first`: before everybody who is not."""
        place = (not first, sequence.priority, sequence.arrival, next(self._ties))
        heapq.heappush(self._lines.setdefault(sequence.client, []), (place, sequence))

    def peek(self) -> Sequence | None:
        """Whose turn it is; None where nobody waits."""
        line = self._next_line()
        return None if line is None else line[0][1]

    def pop(self) -> Sequence | None:
        """Take out whose turn it is."""
        line = self._next_line()
        return None if line is None else heapq.heappop(line)[1]

    def _next_line(self) -> list[_Waiting] | None:
        for client, line in list(self._lines.items()):
            while line and line[0][1].status is not Status.WAITING:
                heapq.heappop(line)
            if not line:
                del self._lines[client]
        if len(self._lines) <= 1:
            return next(iter(self._lines.values()), None)
        return min(self._lines.values(), key=self._turn_of)

    def _turn_of(self, line: list[_Waiting]) -> tuple[object, ...]:
        (behind, *_), sequence = line[0]
        return (behind, *self._shares.turn_of_client(sequence), sequence.arrival, sequence.id)
