"""The rows of a step that have a grammar: their masks, and guesses that keep to them."""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np

from mlx_parallm.engine.grammar.masks import Wanted
from mlx_parallm.engine.guessing.drafter import Proposal
from mlx_parallm.engine.sequence import Sequence


def is_constrained(sequences: Items[Sequence]) -> bool:
    """Whether some of them have a grammar."""
    return any(s.constraint is not None for s in sequences)


def wanted_masks(
    sequences: Items[Sequence], guesses: np.ndarray | None, counts: np.ndarray
) -> list[Wanted]:
    """The masks of a step.

    Args:
        sequences: B of them, in the order of the step's logits.
        guesses: (B, k); None where nothing is guessed.
        counts: (B,) guesses that count.
    """
    wanted, first = [], 0
    for place, (sequence, count) in enumerate(zip(sequences, counts.tolist(), strict=True)):
        constraint = sequence.constraint
        if constraint is not None and constraint.holds:
            own = [] if guesses is None or not count else guesses[place, :count].tolist()
            wanted.append(_wanted(sequence, first, own))
        first += count + 1
    return wanted


def _wanted(sequence: Sequence, first: int, guesses: list[int]) -> Wanted:
    params = sequence.params
    assert sequence.constraint is not None
    ends = params.end_token_ids | params.eos_token_ids
    withheld = max(0, params.min_tokens - len(sequence.output))
    if params.ignore_eos:
        withheld = len(guesses) + 1
    return Wanted(sequence.constraint, first, guesses, ends, withheld)


def keep_to_grammars(
    proposal: Proposal, sequences: Items[Sequence], most: int, chance: float
) -> None:
    """Replace guesses that a grammar does not allow by what has to come.

    Args:
        most: guesses a row at most.
        chance: that a text which has to come is written in the tokens that are guessed.
    """
    if not is_constrained(sequences):
        return
    guesses, odds = np.array(proposal.guesses), proposal.odds
    proposal.guesses, proposal.odds = _widened(guesses, most), None
    if odds is not None:
        proposal.odds = _widened(odds, most)
    proposal.counts = np.array(proposal.counts)
    for row, sequence in enumerate(sequences):
        if sequence.constraint is not None and sequence.constraint.holds:
            _keep_row(proposal, row, sequence, most, chance)


def _keep_row(proposal: Proposal, row: int, sequence: Sequence, most: int, chance: float) -> None:
    constraint = sequence.constraint
    assert constraint is not None and isinstance(proposal.guesses, np.ndarray)
    count = int(proposal.counts[row])
    drafted = proposal.guesses[row, :count].tolist()
    forced = constraint.forced()[:most]
    if forced and drafted[: len(forced)] != forced:
        proposal.forced.add(row)
        proposal.counts[row] = len(forced)
        proposal.guesses[row, : len(forced)] = forced
        if proposal.odds is not None:
            proposal.odds[row] = 0
            proposal.odds[row, : len(forced)] = chance ** np.arange(1, len(forced) + 1)
    elif drafted:
        proposal.counts[row] = constraint.allowed(drafted)


def _widened(array: np.ndarray, width: int) -> np.ndarray:
    return np.pad(array, ((0, 0), (0, max(0, width - array.shape[1]))))
