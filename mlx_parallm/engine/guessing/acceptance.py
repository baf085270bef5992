"""Acceptance: how many of its guesses each sequence accepted of late."""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np

from mlx_parallm.engine.sequence import Sequence


@dataclass(eq=False)
class Acceptance:
    """Running averages of each sequence; a new one begins with the average of all.

    A rate is the chance that one more guess is right, a gain the number of guesses
    that a step accepted.
    """

    _rates: dict[int, float] = field(default_factory=dict)
    _gains: dict[int, float] = field(default_factory=dict)
    _rate: float = 0.7
    _gain: float = 1.0

    def verified(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """A step looked at `drafted` guesses of a sequence; the first `accepted` were right."""
        gain = self._gains.get(sequence.id, self._gain)
        self._gains[sequence.id] = gain = gain + 0.1 * (accepted - gain)
        self._gain += 0.02 * (gain - self._gain)
        # Guesses behind the first wrong one tell nothing.
        tried = min(drafted, accepted + 1)
        rate = self._rates.get(sequence.id, self._rate)
        for place in range(tried):
            rate += 0.15 * ((1.0 if place < accepted else 0.0) - rate)
        self._rates[sequence.id] = rate
        self._rate += 0.01 * (rate - self._rate)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._rates.pop(sequence.id, None)
        self._gains.pop(sequence.id, None)

    def gained(self, sequences: Items[Sequence]) -> float:
        """Guesses that a step of these sequences is expected to accept."""
        return sum(self._gains.get(s.id, self._gain) for s in sequences)

    def expected(self, sequences: Items[Sequence], most: int) -> np.ndarray:
        """(most,) guesses expected to be accepted, if each sequence gets 1, 2, ... of them.

        Of n guesses those before the first wrong one are accepted.
        """
        rates = np.array([self._rates.get(s.id, self._rate) for s in sequences])
        return np.asarray((rates[:, None] ** np.arange(1, most + 1)).sum(axis=0).cumsum())
