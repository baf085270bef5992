"""A Ledger: what one sequence was given, for its receipt. No mlx here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Ledger:
    """Counts of one sequence.

    Attributes:
        chunks: steps in which tokens of its prompt were computed.
        steps: in which it decoded. rows: that decoded in these steps, itself included.
        from_disk: tokens of prefixes that were brought back from disk when it began.
        guessed, accepted: tokens that were guessed ahead, and those of them that were right.
        preemptions: how often its row was taken; it was computed again later.
    """

    chunks: int = 0
    steps: int = 0
    rows: int = 0
    from_disk: int = 0
    guessed: int = 0
    accepted: int = 0
    preemptions: int = 0
