"""The ModelDrafter: a smaller model guesses what the target will say."""

from __future__ import annotations

import time
from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import MAX_WIDTH, BatchedCache
from mlx_parallm.cache.span import Row
from mlx_parallm.engine.guessing.drafter import Proposal
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.models.adapting import replacements
from mlx_parallm.models.adapting.adapt import adapt


class ModelDrafter:
    """A smaller model with the same tokenizer guesses greedily.

    It has rows of its own, which may lag behind the target's: a guess begins with
    catching up.

    Args:
        share: gives all ranks the same guesses.
    """

    is_free = False

    def __init__(
        self,
        model: Any,
        vocab_size: int,
        share: Callable[[mx.array], mx.array] = lambda guesses: guesses,
    ) -> None:
        self._share = share
        self.model = adapt(model)
        replacements.install(model)
        self.vocab_size = vocab_size
        self.reset()

    @property
    def caches(self) -> list[BatchedCache]:
        """See Drafter."""
        return [self.cache]

    def lag(self, sequences: list[Sequence]) -> int:
        """See Drafter."""
        return sum(s.num_tokens - self._right.get(s.id, 0) for s in sequences)

    def propose(self, sequences: list[Sequence], most: int) -> Proposal:
        """See Drafter. The guesses are still being computed when this returns."""
        lag = self.lag(sequences)
        ordered = self._line_up(sequences)
        rows = [self._rows[s.id] for s in ordered]
        began = time.perf_counter()
        self._read(ordered, rows, most)
        seconds = time.perf_counter() - began
        token = self._catch_up(ordered, rows)
        guesses = [token]
        while len(guesses) < most:
            mx.async_eval(token)  # computes while the next forward is built
            token = self._forward(token[:, None], [1] * len(rows), 1)
            guesses.append(token)
        together = self._share(mx.stack(guesses, axis=1))
        if ordered != sequences:
            place = {s.id: index for index, s in enumerate(ordered)}
            together = together[mx.array([place[s.id] for s in sequences])]
        mx.async_eval(together, self.cache.arrays)
        self._right.update({s.id: s.num_tokens for s in sequences})
        counts = np.full(len(rows), most, dtype=np.int32)
        long = lag > len(rows) * (most + 1)  # more than one step leaves unread
        read, took = (lag, seconds) if long else (0, 0.0)
        return Proposal(together, counts, None, read, took, asked=list(sequences))

    def learn(self, proposal: Proposal, verified: Items[int], accepted: Items[int]) -> None:
        """See Drafter: rows keep the tokens whose guesses were right; nothing else is learned."""
        for sequence, right in zip(proposal.asked, accepted, strict=True):
            if sequence.id in self._rows:
                # The last guess of a row was sampled, but the model has not read it.
                held = self._rows[sequence.id].length
                self._right[sequence.id] = min(self._right[sequence.id] + right, held)

    def observe(self, sequences: list[Sequence], *, guessing: bool) -> None:
        """See Drafter: its rows hold all that it needs."""

    def fork(self, sequence: Sequence, leader: Sequence) -> None:
        """See Drafter."""
        if leader.id in self._rows:
            self._rows[sequence.id] = self.cache.fork(self._rows[leader.id])
            self._right[sequence.id] = self._right[leader.id]

    def forget(self, sequence: Sequence) -> None:
        """See Drafter."""
        if sequence.id in self._rows:
            self.cache.leave(self._rows.pop(sequence.id))
            del self._right[sequence.id]

    def reset(self) -> None:
        """See Drafter."""
        self.cache = BatchedCache(self.model)
        self._rows: dict[int, Row] = {}
        self._right: dict[int, int] = {}  # tokens of each row that are its sequence's

    def _line_up(self, sequences: list[Sequence]) -> list[Sequence]:
        """Give these sequences the first rows; returns them in the order of their rows."""
        for sequence in sequences:
            if sequence.id not in self._rows:
                self._rows[sequence.id] = self.cache.join()
                self._right[sequence.id] = 0
            row = self._rows[sequence.id]
            row.length = min(self._right[sequence.id], sequence.num_tokens - 1)
        rows = [self._rows[s.id] for s in sequences]
        taken = {row.index for row in rows}
        free = iter([index for index in range(len(rows)) if index not in taken])
        for row in rows:
            if row.index >= len(rows):
                self.cache.swap(row, self.cache.rows[next(free)])
        return sorted(sequences, key=lambda s: self._rows[s.id].index)

    def _read(self, sequences: list[Sequence], rows: list[Row], most: int) -> None:
        """Compute tokens of rows that are far behind, row by row: in one forward, all would be
        padded to the longest. Their logits are not needed."""
        for sequence, row in zip(sequences, rows, strict=True):
            while (left := sequence.num_tokens - row.length) > most + 1:
                count = min(left - 1, MAX_WIDTH)
                self.cache.begin(row.index, row.index + 1, count, [count])
                self.model(self._inputs([sequence], [row], [count]), cache=self.cache.layers)
                self.cache.commit()
                mx.eval(self.cache.arrays)

    def _catch_up(self, sequences: list[Sequence], rows: list[Row]) -> mx.array:
        """(B,) the first guess, after the tokens since the last one were computed."""
        counts = [s.num_tokens - r.length for s, r in zip(sequences, rows, strict=True)]
        return self._forward(self._inputs(sequences, rows, counts), counts, max(counts))

    @staticmethod
    def _inputs(sequences: list[Sequence], rows: list[Row], counts: list[int]) -> mx.array:
        """(B, T) the next tokens of each row."""
        inputs = np.zeros((len(rows), max(counts)), dtype=np.int32)
        for place, (sequence, row, count) in enumerate(zip(sequences, rows, counts, strict=True)):
            inputs[place, :count] = sequence.tokens_between(row.length, row.length + count)
        return mx.array(inputs)

    def _forward(self, inputs: mx.array, counts: list[int], width: int) -> mx.array:
        self.cache.begin(0, len(counts), width, counts)
        logits = self.model(inputs, cache=self.cache.layers)
        self.cache.commit()
        last = logits[:, 0]
        if width > 1:
            last = logits[mx.arange(len(counts)), mx.array([count - 1 for count in counts])]
        return mx.argmax(last[:, : self.vocab_size], axis=-1).astype(mx.int32)
