"""Speculation as a step sees it: guesses to verify, and how many were accepted."""

from __future__ import annotations

import time

import numpy as np

from mlx_parallm.engine.guessing.drafter import Drafter, Proposal
from mlx_parallm.engine.guessing.length_controller import LengthController, SpeculativeStats
from mlx_parallm.engine.pacing.measurements import Measurements
from mlx_parallm.engine.sampling.constrained import keep_to_grammars
from mlx_parallm.engine.sequence import Sequence

_PADDING_SHARE = 0.4  # time of a padding place in a packed forward, over that of a token


class Speculation:
    """A drafter, and the controller that says how far it guesses.

    Args:
        most: tokens to guess a row at most.
        measurements: on their way to what is decided by them.
        packs: whether forwards compute no padding.
    """

    def __init__(
        self, drafter: Drafter, most: int, measurements: Measurements, *, packs: bool
    ) -> None:
        self.drafter = drafter
        self.lengths = LengthController(most, drafter.is_free, _PADDING_SHARE if packs else 1.0)
        self._measurements = measurements
        measurements.takers["guessing"] = self.lengths.measured
        measurements.takers["catching_up"] = self.lengths.caught_up
        self._canonical = 0.9  # chance that what has to come is written as it mostly is

    def limit(self, most: int) -> None:
        """Guess at most so many tokens a row from the next step on; 0 pauses guessing."""
        self.lengths.limit(most)

    def stats(self) -> SpeculativeStats:
        """A copy of the counters."""
        return self.lengths.stats.copy()

    def choose(self, sequences: list[Sequence]) -> int:
        """Tokens worth guessing for these sequences in their next step."""
        return self.lengths.choose(sequences, lambda: self.drafter.lag(sequences))

    def propose(self, sequences: list[Sequence], most: int, without: set[int]) -> Proposal | None:
        """Guesses that are worth verifying; None where there are none.

        without: ids of sequences that cannot be given any in this step.
        """
        began = time.perf_counter()
        proposal = self.drafter.propose(sequences, most)
        self._measurements.note("catching_up", proposal.caught_up, proposal.seconds)
        keep_to_grammars(proposal, sequences, most, self._canonical)
        room = [0 if s.id in without else room_to_guess(s) for s in sequences]
        proposal.counts = np.minimum(proposal.counts, np.maximum(room, 0)).astype(np.int32)
        if not self.lengths.narrow(proposal):
            for sequence in sequences:
                self.lengths.verified(sequence, 0, 0)
            self.lengths.stats.draft_time += time.perf_counter() - began
            return None
        proposal.began = began
        return proposal

    def verified(self, sequences: list[Sequence], proposal: Proposal, accepted: list[int]) -> None:
        """So many guesses of each sequence were right."""
        drafted = proposal.counts.tolist()
        for sequence, count, right in zip(sequences, drafted, accepted, strict=True):
            self.lengths.verified(sequence, count, right)
            sequence.ledger.guessed += count
            sequence.ledger.accepted += right
        for row in proposal.forced:
            self._learn_forced(drafted[row], accepted[row])
            drafted[row] = 0
        self.drafter.learn(proposal, drafted, accepted)

    def _learn_forced(self, guessed: int, right: int) -> None:
        for place in range(min(guessed, right + 1)):
            self._canonical += 0.05 * ((place < right) - self._canonical)

    def forget(self, sequence: Sequence) -> None:
        """The sequence's row is gone."""
        self.lengths.forget(sequence)
        self.drafter.forget(sequence)


def room_to_guess(sequence: Sequence) -> int:
    """Guesses that a sequence can use: one token comes without a guess."""
    if sequence.params.speculative is False:
        return 0
    return sequence.params.max_tokens - sequence.num_sampled - 1
