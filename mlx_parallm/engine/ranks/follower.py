"""The Follower: every rank but the first, which does what rank 0 says."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_parallm.engine.grammar.compiler import Compiler
from mlx_parallm.engine.guard.memory_guard import MemoryGuard
from mlx_parallm.engine.inbox import Entry, Inbox, entry_of
from mlx_parallm.engine.pacing.measurements import Measurements
from mlx_parallm.engine.plan import Plan
from mlx_parallm.engine.ranks.events import Quit
from mlx_parallm.engine.ranks.launch import kill_leader
from mlx_parallm.engine.ranks.links import Link
from mlx_parallm.engine.ranks.met import MetRanks, OnEnd, facts_of
from mlx_parallm.engine.ranks.turn import checksum
from mlx_parallm.engine.ranks.wire import Reader
from mlx_parallm.engine.step import Found
from mlx_parallm.errors import RankLostError


class Follower(MetRanks):
    """Every other rank: does what rank 0 says."""

    def __init__(
        self,
        group: mx.distributed.Group,
        link: Link,
        facts: str,
        limit_s: float,
        on_end: OnEnd,
        *,
        in_stages: bool = False,
    ) -> None:
        super().__init__(group, [link], limit_s, on_end, in_stages=in_stages)
        self._control = link.control
        self._control.send((facts_of(facts), socket.gethostname()))
        self.here = int.from_bytes(self._hear())

    def attach(self, measurements: Measurements, guard: MemoryGuard, engine: Any) -> None:
        """See Ranks."""
        super().attach(measurements, guard, engine)
        loaded = engine.loaded
        compiler = Compiler(loaded.tokenizer, loaded.vocab_size, loaded.eos_token_ids)
        self._reader = Reader(compiler.compiled)
        self._engine = engine

    def begin_turn(self, inbox: Inbox, *, block: bool) -> list[Entry]:
        """See Ranks."""
        reading = None if self._guard is None else self._guard.read()
        if reading is not None:
            self._say(reading)
        turn = self._reader.read(self._hear())
        self.memory = turn.memory
        self._measurements.believe(turn.measured)
        if any(isinstance(event, Quit) for event in turn.events):
            self._pulses[0].expect_end()
        return [entry_of(event, self._engine) for event in turn.events]

    def check(self, plan: Plan) -> None:
        """See Ranks."""
        if int.from_bytes(self._hear()) != checksum(plan):
            raise RankLostError(f"rank {self.rank} has planned another step than rank 0")

    def agree(self, value: int) -> int:
        """See Ranks."""
        self._say(value)
        return int.from_bytes(self._hear(), signed=True)

    def read(self, number: int, own: Callable[[], Found]) -> Found:
        """See Ranks."""
        if not self.in_stages:
            return own()
        found: Found = own() if self.samples else self._hear_data()
        if self.samples:
            self._say(found)
        return found

    def _end(self, reason: str, silent: bool) -> None:
        """A rank 0 that is stopped cannot end by itself."""
        if silent:
            kill_leader()
        super()._end(reason, silent)

    def _say(self, value: Any) -> None:
        try:
            self._control.send(value)
        except OSError as error:
            raise self._lose(error) from error

    def _hear_data(self) -> Any:
        try:
            return self._control.recv()
        except (EOFError, OSError) as error:
            raise self._lose(error) from error

    def _hear(self) -> bytes:
        try:
            return self._control.recv_bytes()
        except (EOFError, OSError) as error:
            raise self._lose(error) from error
