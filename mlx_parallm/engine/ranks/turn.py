"""What rank 0 tells the others once a turn, and the checksum of a plan. No mlx here."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlx_parallm.engine.pacing.measurements import Measured
from mlx_parallm.engine.plan import Plan
from mlx_parallm.engine.sequence import Sequence


class Event(Protocol):
    """Something that an engine is asked to do, as data."""

    @property
    def at_rest(self) -> bool:
        """Only with no step in flight."""

    def apply(self, engine: Any) -> Any:
        """Do it, on the engine's thread."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes of memory that a process uses, that it may use, and that it can still take."""

    used: int
    limit: int
    left: int


@dataclass(slots=True)
class Turn:
    """Everything that a turn of the loop depends on, besides what is computed.

    Attributes:
        events: in the order in which they are done.
        measured: of steps before, by which the length of the next ones is decided.
        memory: the least of all ranks, where it is time to look at it.
        forgotten: keys of adapters that nobody uses any more; see wire.py.
    """

    events: list[Event]
    measured: list[Measured] = field(default_factory=list)
    memory: Reading | None = None
    forgotten: list[int] = field(default_factory=list)


def checksum(plan: Plan) -> int:
    """Of who computes what in a plan, and behind which tokens."""
    facts = (
        [s.id for s in plan.release],
        [(s.id, s.num_tokens, _slot(s)) for s in plan.admit],
        [(s.id, match.num_tokens) for s, match in plan.loads],
        [(s.id, count) for s, count in plan.prefill],
        [(s.id, leader.id) for s, leader in plan.forks],
        [(s.id, s.num_computed, s.newest) for s in plan.decode],
        [s.id for s in plan.complete],
        [(s.id, count) for s, count in plan.predictions],
        [(s.id, s.micro_batch) for s, _ in plan.moves],
        plan.portion.key,
    )
    return zlib.crc32(repr(facts).encode())


def _slot(sequence: Sequence) -> int:
    return 0 if sequence.adapter is None else sequence.adapter.slot
