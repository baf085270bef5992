"""The Leader: rank 0, which says what happens."""

from __future__ import annotations

import pickle
import socket
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_parallm.engine.inbox import Entry, Inbox
from mlx_parallm.engine.plan import Plan
from mlx_parallm.engine.ranks.events import Quit
from mlx_parallm.engine.ranks.links import Link
from mlx_parallm.engine.ranks.met import MetRanks, OnEnd, facts_of
from mlx_parallm.engine.ranks.turn import Reading, Turn, checksum
from mlx_parallm.engine.ranks.wire import Writer
from mlx_parallm.engine.step import Found
from mlx_parallm.errors import ModelLoadError


class Leader(MetRanks):
    """Rank 0: says what happens."""

    def __init__(
        self,
        group: mx.distributed.Group,
        links: list[Link],
        facts: str,
        limit_s: float,
        on_end: OnEnd,
        *,
        in_stages: bool = False,
    ) -> None:
        super().__init__(group, links, limit_s, on_end, in_stages=in_stages)
        self._found: deque[Found] = deque()
        self._writer = Writer()
        self._readings: dict[int, Reading] = {}
        self.here = self._compare(facts)

    def begin_turn(self, inbox: Inbox, *, block: bool) -> list[Entry]:
        """See Ranks."""
        entries = super().begin_turn(inbox, block=block)
        self.memory = self._least(self.memory)
        events = [entry.event for entry in entries if entry.event is not None]
        turn = Turn(events, self._measurements.take(), self.memory)
        if any(isinstance(event, Quit) for event in events):
            for pulse in self._pulses:
                pulse.expect_end()
        self._tell(self._writer.write(turn))
        self._measurements.believe(turn.measured)
        return entries

    def check(self, plan: Plan) -> None:
        """See Ranks."""
        self._tell(checksum(plan).to_bytes(4))

    def agree(self, value: int) -> int:
        """See Ranks."""
        least: int = min([value, *self._hear()])
        self._tell(least.to_bytes(8, signed=True))
        return least

    def read(self, number: int, own: Callable[[], Found]) -> Found:
        """See Ranks; what the last rank says is passed on to those between."""
        if self.samples:
            return own()
        found = self._next_found()
        while found.number != number:  # of a step that was given up
            found = self._next_found()
        self._tell(pickle.dumps(found), self._links[:-1])
        return found

    def _next_found(self) -> Found:
        while not self._found:
            self._keep(self._links[-1], self._hear_one(self._links[-1]))
        return self._found.popleft()

    def _tell(self, data: bytes, links: list[Link] | None = None) -> None:
        try:
            for link in self._links if links is None else links:
                link.control.send_bytes(data)
        except OSError as error:
            raise self._lose(error) from error

    def _hear(self) -> list[Any]:
        """What each of the others says next, besides what it says unasked."""
        found = []
        for link in self._links:
            while self._keep(link, said := self._hear_one(link)):
                pass
            found.append(said)
        return found

    def _keep(self, link: Link, said: Any) -> bool:
        """Whether this is something that a rank says unasked, which is kept."""
        if isinstance(said, Reading):
            self._readings[link.rank] = said
        elif isinstance(said, Found):
            self._found.append(said)
        return isinstance(said, Reading | Found)

    def _least(self, own: Reading | None) -> Reading | None:
        """The reading of the rank that has least left, where it is time to look."""
        for link in self._links:
            while link.control.poll():
                self._keep(link, self._hear_one(link))
        if own is None:
            return None
        return min([own, *self._readings.values()], key=lambda reading: reading.left)

    def _hear_one(self, link: Link) -> Any:
        try:
            return link.control.recv()
        except (EOFError, OSError) as error:
            raise self._lose(error) from error

    def _compare(self, facts: str) -> int:
        """How many ranks are on this machine.

        Raises:
            ModelLoadError: a rank is not like this one.
        """
        mine, host = facts_of(facts), socket.gethostname()
        told = self._hear()
        for link, (theirs, _) in zip(self._links, told, strict=True):
            if theirs != mine:
                wrong = next(t for t, m in zip(theirs, mine, strict=True) if t != m)
                reason = f"rank {link.rank} is not like rank 0: it has {wrong}"
                self.close(reason)
                raise ModelLoadError(reason)
        hosts = Counter([host, *(other for _, other in told)])
        for link, (_, other) in zip(self._links, told, strict=True):
            link.control.send_bytes(hosts[other].to_bytes(8))
        return hosts[host]
