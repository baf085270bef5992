"""Which version of the model's weights a step computes with. No mlx here.

A forward reads one version. Where rows finish on earlier ones, all versions take turns.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mlx_parallm.engine.sequence import Sequence, Status

if TYPE_CHECKING:
    from mlx_parallm.engine.weights import Weights


class Turns:
    """The versions that sequences have.

    Attributes:
        current: of sequences that begin; None where the weights never change.
    """

    def __init__(self) -> None:
        self.current: Weights | None = None
        self._newest: Weights | None = None  # step

    def begin(self, sequence: Sequence) -> None:
        """Whoever has written nothing yet gets the current weights, unless it has memories, which
        were made with others."""
        if self.current is None or sequence.weights is self.current:
            return
        if sequence.weights is None or not (sequence.output or sequence.memory):
            sequence.begin_with(self.current)

    def following(self, running: Iterable[Sequence]) -> Weights | None:
        """The version of the next step."""
        versions = {id(sequence.weights): sequence.weights for sequence in running}
        if len(versions) < 2:
            return next(iter(versions.values()), self.current)
        ordered = sorted((w for w in versions.values() if w), key=lambda w: w.version)
        before = -1 if self._newest is None else self._newest.version
        return next((w for w in ordered if w.version > before), ordered[0])

    def take(self, running: Iterable[Sequence]) -> Weights | None:
        """Begin the next step; returns its version."""
        self._newest = self.following(running)
        return self._newest


def decoding(weights: Weights | None, sequences: Iterable[Sequence]) -> list[Sequence]:
    """Those that one version computes, and that sample."""
    return [s for s in sequences if s.status is Status.RUNNING and s.weights is weights]


def behind(weights: Weights | None, sequences: Iterable[Sequence]) -> list[Sequence]:
    """Those that one version computes, and that catch up with their prompts."""
    return [s for s in sequences if s.status is Status.PREFILL and s.weights is weights]
