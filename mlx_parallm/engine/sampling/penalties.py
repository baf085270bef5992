"""Repetition, presence and frequency penalties, counted on the device."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.span import Ragged
from mlx_parallm.engine.sequence import Sequence


class Penalties:
    """Token counts of the rows with penalties, kept on the device.

    seen: (R, V) bool, prompt and output; counts: (R, V) float32, output only.
    """

    def __init__(self, rows: list[int], sequences: list[Sequence]) -> None:
        self.rows = rows
        self.sequences = sequences
        self.index = mx.array(rows)
        params = [s.params for s in sequences]
        self.repetition = _column([p.repetition_penalty for p in params])
        self.presence = _column([p.presence_penalty for p in params])
        self.frequency = _column([p.frequency_penalty for p in params])
        self.seen: mx.array
        self.counts: mx.array

    @classmethod
    def of(
        cls, sequences: list[Sequence], vocab_size: int, old: Penalties | None
    ) -> Penalties | None:
        rows = [r for r, s in enumerate(sequences) if s.params.has_penalties]
        if not rows:
            return None
        self = cls(rows, [sequences[r] for r in rows])
        known = {} if old is None else {s.id: r for r, s in enumerate(old.sequences)}
        seen, counts = [], []
        for sequence in self.sequences:
            # A row that was here holds a token that the host has not read yet.
            if old is not None and sequence.id in known:
                seen.append(old.seen[known[sequence.id]])
                counts.append(old.counts[known[sequence.id]])
            else:
                before, generated = _token_counts(sequence, vocab_size)
                seen.append(mx.array(before))
                counts.append(mx.array(generated))
        self.seen, self.counts = mx.stack(seen), mx.stack(counts)
        return self

    def apply(self, logits: mx.array) -> mx.array:
        """(B, V) logits with the rows' penalties."""
        mine = logits[self.index]
        repeated = mx.where(mine > 0, mine / self.repetition, mine * self.repetition)
        mine = mx.where(self.seen, repeated, mine)
        mine = mine - self.frequency * self.counts
        mine = mine - self.presence * (self.counts > 0)
        logits = logits + 0  # the raw ones are still needed
        logits[self.index] = mine
        return logits

    def assume(self, guesses: mx.array, layout: Ragged) -> None:
        """Count the guesses before each row; guesses (B, k), layout as in `sample_ahead`."""
        for place in range(1, int(layout.places.max()) + 1):
            mine = [p for p, row in enumerate(self.rows) if layout.places[row] >= place]
            if not mine:
                return
            owners = layout.rows[[self.rows[p] for p in mine]]
            tokens = guesses[mx.array(owners), place - 1]
            index = mx.array(mine)
            self.counts = self.counts.at[index, tokens].add(1.0)
            self.seen[index, tokens] = mx.array(True)

    def count(self, tokens: mx.array) -> None:
        """Count one new token a row; tokens (B,)."""
        mine = tokens[self.index][:, None]
        ones = mx.ones(mine.shape, dtype=mx.float32)
        self.counts = mx.put_along_axis(
            self.counts, mine, mx.take_along_axis(self.counts, mine, axis=-1) + ones, axis=-1
        )
        self.seen = mx.put_along_axis(self.seen, mine, ones.astype(mx.bool_), axis=-1)


def _column(values: list[float]) -> mx.array:
    return mx.array(values, dtype=mx.float32)[:, None]


def _token_counts(sequence: Sequence, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(np.array(sequence.output, dtype=np.int64), minlength=vocab_size)
    seen = counts[:vocab_size] > 0
    seen[np.array(sequence.words, dtype=np.int64)] = True
    return seen, counts[:vocab_size].astype(np.float32)
