"""What a step's forwards are given and what they give, however they are laid out.

Rows of models that can be packed share one forward (packed_forwards.py); those of other
models are computed in two, over rows that catch up and over rows that decode
(padded_forwards.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.cache.extended_mind import Cited
from mlx_parallm.cache.row_cache import RowCache
from mlx_parallm.cache.span import Ragged, Row
from mlx_parallm.engine.guessing.drafter import Proposal
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.step import PromptScores


@dataclass(slots=True)
class Work:
    """What one step computes.

    Attributes:
        decode: sequences that sample a token, as `Forwards.order` has them.
        chunks: sequence id -> tokens to catch up before its last one.
        chunked: the sequences of these.
        forks: (sequence, leader): gets a copy of the leader's row, and its logits.
        proposal: guesses of `decode`; None where nothing is guessed.
        last: (R,) the newest tokens of `decode`'s first R sequences, where the host has not
            read all of them.
    """

    decode: list[Sequence]
    chunks: Mapping[int, int]
    chunked: list[Sequence]
    forks: list[tuple[Sequence, Sequence]]
    proposal: Proposal | None = None
    last: mx.array | None = None

    @property
    def guesses(self) -> np.ndarray:
        """(B,) guesses of each sequence that samples."""
        if self.proposal is None:
            return np.zeros(len(self.decode), dtype=np.int32)
        return self.proposal.counts


@dataclass(slots=True)
class Computed:
    """What the forwards gave, still on the device.

    Attributes:
        logits: (N, V), behind each last token and each guess, in the order of `layout`.
        layout: how they belong to the work's `decode`; None where nothing samples.
        scores: log-probabilities of prompts' tokens.
        cited: memories that were used, by the rows of a forward.
        cited_by: sequence id -> its row there, and which of the row's tokens samples first.
        tokens: how many the model was given.
    """

    logits: mx.array | None = None
    layout: Ragged | None = None
    scores: list[PromptScores] = field(default_factory=list)
    cited: list[Cited] = field(default_factory=list)
    cited_by: dict[int, tuple[int, int]] = field(default_factory=dict)
    tokens: int = 0


class Forwards(Protocol):
    """Owns the rows of all running sequences, and computes their tokens."""

    packs: bool

    @property
    def cache(self) -> BatchedCache | RowCache:
        """What holds the rows."""

    @property
    def rows(self) -> dict[int, Row]:
        """Sequence id -> its row."""

    def join(self, sequence: Sequence) -> Row:
        """The sequence's row; a new one, where it has none yet."""

    def adopt(self, sequence: Sequence, row: Row) -> None:
        """Take over a row of other forwards of the same model, with what it holds."""

    def release(self, sequence: Sequence) -> None:
        """Give a row back."""

    def order(
        self, decode: list[Sequence], chunks: Mapping[int, int], ahead: int
    ) -> list[Sequence]:
        """The sequences in the order of their logits; those that decoded before come first.

        ahead: guesses that a row may be given.
        """

    def compute(self, work: Work) -> Computed:
        """Compute a step; returns while it computes."""

    def rewind(self, sequence: Sequence, count: int) -> None:
        """Forget the newest tokens: guesses that were wrong."""


def room_for(sequence: Sequence) -> int:
    """Tokens that a new row gets room for: the known ones, and some of the answer."""
    return sequence.num_tokens + min(sequence.params.max_tokens, 48)


def prepare_row(row: Row, sequence: Sequence) -> None:
    """Give a new row its sequence's memories and adapter."""
    if sequence.memory is not None:
        row.memory, row.shift = sequence.memory, sequence.memory.shift
    if sequence.adapter is not None:
        row.adapter = sequence.adapter.slot
