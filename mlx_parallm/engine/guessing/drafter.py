"""What every drafter offers: guesses of the next tokens, for a whole batch."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.engine.sequence import Sequence


@dataclass(slots=True)
class Proposal:
    """Guesses for each row of a batch.

    Attributes:
        guesses: (B, k) int32; may still be computing.
        counts: (B,) how many of each row's guesses are used.
        odds: (B, k) chance that a guess and all before it are right, 0 where there
            is none; None where the drafter cannot say.
        caught_up: tokens that the drafter read before it could guess, and
        seconds: how long these took.
        began: when guessing began.
        forced: rows whose guesses are what a grammar demands, not the drafter's.
        asked: for each row, what the drafter learns by when it is told what became of them.
    """

    guesses: mx.array | np.ndarray
    counts: np.ndarray
    odds: np.ndarray | None = None
    caught_up: int = 0
    seconds: float = 0.0
    began: float = 0.0
    forced: set[int] = field(default_factory=set)
    asked: list[Any] = field(default_factory=list)


class Drafter(Protocol):
    """Guesses tokens for a batch.

    Attributes:
        is_free: guessing costs next to nothing, so that a step may guess as many as
            it can and decide afterwards how many are worth verifying.
    """

    is_free: bool

    @property
    def caches(self) -> list[BatchedCache]:
        """What it computes in, to be evaluated with each step."""

    def lag(self, sequences: list[Sequence]) -> int:
        """Tokens that it has to read before it can guess."""

    def propose(self, sequences: list[Sequence], most: int) -> Proposal:
        """At most `most` guesses for each sequence."""

    def learn(self, proposal: Proposal, verified: Items[int], accepted: Items[int]) -> None:
        """What became of a proposal: guesses looked at and accepted, by row."""

    def observe(self, sequences: list[Sequence], *, guessing: bool) -> None:
        """Take in what is known of these sequences by now, while a step computes.

        guessing: whether guesses were asked for in that step.
        """

    def fork(self, sequence: Sequence, leader: Sequence) -> None:
        """A sequence begins with all that another one has read."""

    def forget(self, sequence: Sequence) -> None:
        """Its row is gone."""

    def reset(self) -> None:
        """Forget every row."""
