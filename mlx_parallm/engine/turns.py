"""Which rows a step computes: those of one version of the weights, and of one micro-batch. No mlx.

A forward reads one version. Where rows finish on earlier ones, all versions take turns. Where
ranks compute one after the other, so do portions of the batch, so that all ranks have something to
compute: while one portion is at the last rank, another one is at the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from mlx_parallm.engine.sequence import Sequence, Status

if TYPE_CHECKING:
    from mlx_parallm.engine.weights import Weights


class Portion(NamedTuple):
    """The rows that one step computes.

    Attributes:
        weights: their version of the model; None where the weights never change.
        micro_batch: their number.
    """

    weights: Weights | None
    micro_batch: int = 0

    @classmethod
    def of(cls, sequence: Sequence) -> Portion:
        """The portion that a sequence is in."""
        return cls(sequence.weights, sequence.micro_batch)

    @property
    def key(self) -> tuple[int, int]:
        """A number for the version, and the micro-batch."""
        return (0 if self.weights is None else self.weights.version), self.micro_batch


EVERYTHING = Portion(None)


class Turns:
    """The portions of the batch.

    Attributes:
        current: the version of sequences that begin; None where the weights never change.
        micro_batches: how many there are at most.
    """

    def __init__(self) -> None:
        self.current: Weights | None = None
        self.micro_batches = 1
        self._newest = (-1, -1)  # step

    def begin(self, sequence: Sequence) -> None:
        """Whoever has written nothing yet gets the current weights, unless it has memories, which
        were made with others."""
        if self.current is None or sequence.weights is self.current:
            return
        if sequence.weights is None or not (sequence.output or sequence.memory):
            sequence.begin_with(self.current)

    def smallest(self, running: Iterable[Sequence]) -> int:
        """The micro-batch with the fewest rows."""
        if self.micro_batches == 1:
            return 0
        rows = Counter(sequence.micro_batch for sequence in running)
        return min(range(self.micro_batches), key=lambda number: rows[number])

    def following(self, running: Iterable[Sequence]) -> Portion:
        """The portion of the next step."""
        portions = {portion.key: portion for portion in map(Portion.of, running)}
        if len(portions) < 2:
            return next(iter(portions.values()), Portion(self.current))
        ordered = sorted(portions)
        return portions[next((key for key in ordered if key > self._newest), ordered[0])]

    def take(self, running: Iterable[Sequence]) -> Portion:
        """Begin the next step; returns its portion."""
        portion = self.following(running)
        self._newest = portion.key
        return portion

    def even_out(self, portion: Portion, running: list[Sequence]) -> list[tuple[Sequence, Portion]]:
        """Let decoding rows of a portion go on in a smaller one; returns them, and where from."""
        moved = []
        movable = decoding(portion, running)
        while self.micro_batches > 1 and movable:
            target = self.smallest(running)
            sizes = Counter(sequence.micro_batch for sequence in running)
            if sizes[portion.micro_batch] - sizes[target] < 2:
                break
            sequence = movable.pop()
            sequence.micro_batch = target
            moved.append((sequence, portion))
        return moved


def decoding(portion: Portion, sequences: Iterable[Sequence]) -> list[Sequence]:
    """Those of a portion that sample."""
    return [s for s in sequences if s.status is Status.RUNNING and _is_in(s, portion)]


def behind(portion: Portion, sequences: Iterable[Sequence]) -> list[Sequence]:
    """Those of a portion that catch up with their prompts."""
    return [s for s in sequences if s.status is Status.PREFILL and _is_in(s, portion)]


def _is_in(sequence: Sequence, portion: Portion) -> bool:
    return sequence.weights is portion.weights and sequence.micro_batch == portion.micro_batch
