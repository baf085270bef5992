"""Ranks: the other processes that compute the same model, as the engine's loop sees them.

The base class is what one process alone does: nothing is told to anybody.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlx_parallm.engine.guard.memory_guard import MemoryGuard
from mlx_parallm.engine.inbox import Entry, Inbox
from mlx_parallm.engine.plan import Plan
from mlx_parallm.engine.ranks.turn import Reading
from mlx_parallm.errors import ModelLoadError, NotANumberError

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_parallm.engine.pacing.measurements import Measurements
    from mlx_parallm.engine.step import Found


class Ranks:
    """One process alone.

    Attributes:
        rank: this one's number. size: how many there are. here: those on this machine.
        in_stages: each has some layers, and computes when the one before has; else each has a
            part of all layers.
        memory: the newest reading, where it is time to look at it.
    """

    rank = 0
    size = 1
    here = 1
    in_stages = False

    def __init__(self) -> None:
        self.memory: Reading | None = None
        self._guard: MemoryGuard | None = None

    @property
    def leads(self) -> bool:
        """Whether requests come to this rank."""
        return self.rank == 0

    @property
    def samples(self) -> bool:
        """Whether this rank has the logits."""
        return not self.in_stages or self.rank == self.size - 1

    @property
    def stages(self) -> int:
        """How many ranks a forward goes through, one after the other."""
        return self.size if self.in_stages else 1

    def attach(self, measurements: Measurements, guard: MemoryGuard, engine: Any) -> None:
        """Belong to an engine whose model is loaded."""
        self._guard = guard

    def begin_turn(self, inbox: Inbox, *, block: bool) -> list[Entry]:
        """What is to be done before the next step.

        Args:
            block: there is nothing to compute: wait until something comes.

        Raises:
            RankLostError: another rank has ended.
        """
        entries = inbox.take(block=block)
        self.memory = None if self._guard is None else self._guard.read()
        return entries

    def check(self, plan: Plan) -> None:
        """Compare the plan with the other ranks'.

        Raises:
            RankLostError: it is another one.
        """

    def agree(self, value: int) -> int:
        """The smallest value of all ranks, each of which asks at the same place."""
        return value

    def compare(self, what: str, value: Any) -> None:
        """Refuse to go on where the ranks have different values.

        Raises:
            ModelLoadError: names `what`.
        """
        number = zlib.crc32(json.dumps(value, sort_keys=True, default=str).encode())
        if self.agree(number) != -self.agree(-number):
            raise ModelLoadError(f"the ranks have different {what}")

    def share(self, array: mx.array) -> mx.array:
        """Rank 0's array, on all ranks, on the device."""
        return array

    def read(self, number: int, own: Callable[[], Found]) -> Found:
        """What a step gave: read here, or told by the rank that samples.

        Args:
            number: of the step. own: waits for it, and reads it.
        """
        return own()

    def verdict(self, error: Exception) -> Exception | None:
        """What ends the loop after a step failed; None where it can go on.

        What failed on one of several ranks only leaves them with different rows.
        """
        return None if self.size == 1 or isinstance(error, NotANumberError) else error

    def close(self, failure: str | None = None) -> None:
        """Part from the others.

        Args:
            failure: why, where that is not what was asked for; they end with an error too.
        """
