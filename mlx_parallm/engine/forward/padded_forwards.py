"""PaddedForwards: for models that cannot be packed. Two forwards a step, over padded grids.

Rows lie in two runs of neighbouring slots: first those that decode, behind them those
that still catch up with their prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.cache.span import Ragged, Row
from mlx_parallm.engine.forward.forwards import Computed, Work, prepare_row
from mlx_parallm.engine.forward.pictured import Part, pictured, set_blocks, set_shift
from mlx_parallm.engine.forward.riders import PromptRiders
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.step import PromptScores
from mlx_parallm.models.body import BodyTap
from mlx_parallm.models.vision.inputs import PictureInputs


class PaddedForwards:
    """See Forwards.

    Args:
        model: an mlx-lm model.
        pictures: how they get into it; None where it does not see.
    """

    packs = False

    def __init__(
        self,
        model: Any,
        body: BodyTap,
        riders: PromptRiders,
        pictures: PictureInputs | None = None,
    ) -> None:
        self.model = model
        self.pictures = pictures
        self.body = body
        self.riders = riders
        self.cache = BatchedCache(model)
        self.rows: dict[int, Row] = {}

    def join(self, sequence: Sequence) -> Row:
        if sequence.id not in self.rows:
            row = self.rows[sequence.id] = self.cache.join()
            prepare_row(row, sequence)
        return self.rows[sequence.id]

    def adopt(self, sequence: Sequence, row: Row) -> None:
        home: BatchedCache = row.home
        home.move(row, self.cache)
        self.rows[sequence.id] = row

    def release(self, sequence: Sequence) -> None:
        self.cache.leave(self.rows.pop(sequence.id))

    def rewind(self, sequence: Sequence, count: int) -> None:
        self.cache.rewind(self.rows[sequence.id], count)

    def order(
        self,
        decode: list[Sequence],
        chunks: Mapping[int, int],
        ahead: int,
    ) -> list[Sequence]:
        """Sequences by their rows; those that have none yet come last."""
        places = {s.id: self.rows[s.id].index for s in decode if s.id in self.rows}
        return sorted(decode, key=lambda s: places.get(s.id, len(places) + s.id))

    def compute(self, work: Work) -> Computed:
        computed = Computed()
        if work.chunked:
            computed.scores = self._catch_up(work)
            computed.tokens = sum(work.chunks.values())
        for sequence, leader in work.forks:
            self.rows[sequence.id] = self.cache.fork(self.rows[leader.id])
        if work.decode:
            self._decode(work, computed)
        return computed

    # Rows that catch up

    def _catch_up(self, work: Work) -> list[PromptScores]:
        """Compute known tokens; their logits only where someone wants them."""
        chunks = [(s, work.chunks[s.id]) for s in work.chunked]
        for sequence, _ in chunks:
            self.join(sequence)
        self._line_up(work.chunked)
        by_row = {self.rows[s.id].index: (s, n) for s, n in chunks}
        start, stop = min(by_row), max(by_row) + 1
        width = max(count for _, count in chunks)
        inputs = np.zeros((stop - start, width), dtype=np.int32)
        for index, (sequence, count) in by_row.items():
            row = self.rows[sequence.id]
            inputs[index - start, :count] = sequence.tokens_between(row.length, row.length + count)
            row.expected = sequence.num_tokens
            set_shift(row, sequence)
        counts = [by_row[r][1] for r in range(start, stop)]
        span = self.cache.begin(start, stop, width, counts)
        pooled = [(index - start, s, n) for index, (s, n) in by_row.items() if s.pooling]
        if pooled:
            self.body.open()
        seen = self._pictures(work.chunked, work.chunks)
        with seen, self.body.routing.over(span.adapters):
            logits = self.model(mx.array(inputs), cache=self.cache.layers)
        if pooled:
            hidden = self.body.take()
            for place, sequence, count in pooled:
                self.riders.pool(hidden[place, :count], sequence, self.rows[sequence.id].length)
        scores = [
            self.riders.score(logits[index - start], s, self.rows[s.id].length, count)
            for index, (s, count) in by_row.items()
            if PromptRiders.wants_scores(s, self.rows[s.id].length)
        ]
        self.cache.commit()
        # The decoding rows write to the same buffers next, in place only if nothing
        # that is still to be computed reads from them.
        mx.eval(self.cache.arrays)
        return scores

    def _line_up(self, sequences: list[Sequence]) -> None:
        """Put these rows side by side: a forward would compute rows between them too."""
        rows = sorted((self.rows[s.id] for s in sequences), key=lambda row: row.index)
        for index, row in enumerate(rows, start=self.cache.num_decoding):
            self.cache.swap(row, self.cache.rows[index])

    # Rows that decode

    def _decode(self, work: Work, computed: Computed) -> None:
        """Compute each row's last token and its guesses behind it, in one forward."""
        for sequence in work.decode:
            self.cache.to_decoding(self.join(sequence))
            set_shift(self.rows[sequence.id], sequence)
        places = [self.rows[s.id].index for s in work.decode]
        order = np.argsort(places)  # slot -> place in work.decode
        counts = work.guesses + 1
        grid = self._grid(work)
        if (order != np.arange(len(order))).any():
            grid = grid[mx.array(order.astype(np.int32))]
        slots = counts[order]
        span = self.cache.begin(0, self.cache.num_decoding, int(counts.max()), slots.tolist())
        with self._pictures(work.decode, {}), self.body.routing.over(span.adapters):
            logits = mx.flatten(self.model(grid, cache=self.cache.layers), 0, 1)
        computed.cited = self.cache.cited()
        self.cache.commit()
        computed.layout = Ragged(counts)
        wanted = np.array(places)[computed.layout.rows] * span.width + computed.layout.places
        if len(wanted) != logits.shape[0] or (wanted != np.arange(len(wanted))).any():
            logits = logits[mx.array(wanted.astype(np.int32))]
        computed.logits = logits[:, : self.riders.vocab_size]
        computed.cited_by = {s.id: (self.rows[s.id].index, 0) for s in work.decode}
        computed.tokens += len(wanted)

    def _pictures(
        self, sequences: list[Sequence], chunks: Mapping[int, int]
    ) -> AbstractContextManager[None]:
        """Computes the pictures of the forward that the cache has begun."""
        if self.pictures is None:
            return nullcontext()
        span, parts = self.cache.span, []
        by_row = {self.rows[s.id]: s for s in sequences if s.media is not None}
        set_blocks(span, self.cache.rows[span.start : span.stop], by_row)
        for row, sequence in by_row.items():
            places = (row.index - span.start) * span.width
            count = chunks.get(sequence.id, span.width)
            parts.append(Part(sequence, row.length, places + np.arange(count)))
        positions = span.first_positions[:, None] + np.arange(span.width)
        return self.pictures.over(pictured(parts, positions.reshape(-1)))

    @staticmethod
    def _grid(work: Work) -> mx.array:
        """(B, T) last tokens and guesses, in the order of work.decode."""
        known = np.array([s.newest for s in work.decode], dtype=np.int32)
        last = mx.array(known)
        if work.last is not None:
            last = mx.concatenate([work.last, last[work.last.shape[0] :]])
        if work.proposal is None:
            return last[:, None]
        width = int(work.proposal.counts.max())
        guesses = mx.array(work.proposal.guesses)[:, :width].astype(mx.int32)
        return mx.concatenate([last[:, None], guesses], axis=1)
