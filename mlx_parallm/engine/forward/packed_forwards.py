"""PackedForwards: decoding rows, their guesses and chunks of prompts in one forward."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.packing import packed_logits
from mlx_parallm.cache.row_cache import RowCache
from mlx_parallm.cache.span import Ragged, Row
from mlx_parallm.engine.forward.forwards import Computed, Work, prepare_row, room_for
from mlx_parallm.engine.forward.pictured import Part, pictured, set_blocks, set_shift
from mlx_parallm.engine.forward.riders import PromptRiders
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.models.body import BodyTap
from mlx_parallm.models.vision.inputs import PictureInputs

_GPU_GRAIN = 32


class PackedForwards:
    """Reads the weights once a step. See Forwards.

    Args:
        model: an mlx-lm model that can be packed.
        pictures: how they get into the model; None where it does not see.
        on_gpu: forwards are padded to few numbers of tokens, and masks are made on the device.
    """

    packs = True

    def __init__(
        self,
        model: Any,
        body: BodyTap,
        riders: PromptRiders,
        pictures: PictureInputs | None = None,
        *,
        on_gpu: bool = False,
    ) -> None:
        self.model = model
        self.pictures = pictures
        self.body = body
        self.riders = riders
        self.cache = RowCache(model, bucket if on_gpu else int, additive=on_gpu)
        self.rows: dict[int, Row] = {}

    def join(self, sequence: Sequence) -> Row:
        if sequence.id not in self.rows:
            row = self.rows[sequence.id] = self.cache.join(room_for(sequence))
            prepare_row(row, sequence)
            row.expected = len(sequence.prompt) + sequence.params.max_tokens
        return self.rows[sequence.id]

    def adopt(self, sequence: Sequence, row: Row) -> None:
        self.cache.adopt(row)
        self.rows[sequence.id] = row

    def release(self, sequence: Sequence) -> None:
        self.cache.leave(self.rows.pop(sequence.id))

    def rewind(self, sequence: Sequence, count: int) -> None:
        self.cache.rewind(self.rows[sequence.id], count)

    def order(
        self, decode: list[Sequence], chunks: Mapping[int, int], ahead: int
    ) -> list[Sequence]:
        """Sequences that decoded before, class by class; then those that do so first."""
        for sequence in decode:
            if sequence.num_sampled and sequence.id not in chunks and sequence.id in self.rows:
                self.cache.to_decoding(self.rows[sequence.id])
        running = [self.rows[s.id] for s in decode if s.id in self.rows]
        self.cache.make_room([(row, 1 + ahead) for row in running if _runs(row)])

        def place(sequence: Sequence) -> tuple[bool, int, int]:
            row = self.rows.get(sequence.id)
            if row is None:  # it will fork another one's
                return True, 1 << 60, sequence.id
            return not _runs(row), *self.cache.place(row)

        return sorted(decode, key=place)

    def compute(self, work: Work) -> Computed:
        if not work.decode and not work.chunked:
            return Computed()
        return _PackedStep(self, work).compute()


class _PackedStep:
    """One forward, from sequences to logits."""

    def __init__(self, forwards: PackedForwards, work: Work) -> None:
        self.forwards, self.work = forwards, work
        self.cache = forwards.cache
        self.leaders = {follower.id: leader for follower, leader in work.forks}
        self.own = [s for s in work.decode if s.id not in self.leaders]
        guesses = work.guesses.tolist()
        self.guesses: dict[int, int] = {s.id: n for s, n in zip(work.decode, guesses, strict=True)}
        only_chunks = [s for s in work.chunked if s.id not in self.guesses]
        self.sequences = [*self.own, *only_chunks]
        self.counts = {s.id: self._count(s) for s in self.sequences}

    def _count(self, sequence: Sequence) -> int:
        """Tokens to compute: a chunk, the last one where it samples, and guesses."""
        chunk = self.work.chunks.get(sequence.id, 0)
        if sequence.id not in self.guesses:
            return chunk
        return chunk + 1 + self.guesses[sequence.id]

    def compute(self) -> Computed:
        self._begin()
        self.places = {s.id: self.at[self.rows[s.id]] for s in self.sequences}
        wanted, scored = self._wanted()
        pooled = [s for s in self.work.chunked if s.pooling]
        if pooled:
            self.forwards.body.open()
        every = len(wanted) == self.cache.span.padded and bool((np.diff(wanted) == 1).all())
        with self._pictures():
            logits = packed_logits(
                self.forwards.model,
                self.cache,
                self.forwards.body,
                self._tokens(),
                None if every else wanted,
            )
        if pooled:
            self._pool(self.forwards.body.take()[:, 0], pooled)
        computed = self._split(logits, scored)
        self._cite(computed)
        computed.tokens = self.cache.span.size
        self.cache.commit()
        self._fork()
        return computed

    def _begin(self) -> None:
        """Give every row its place in the forward."""
        self.rows = {s.id: self.forwards.join(s) for s in self.sequences}
        if self.forwards.pictures is not None:
            for sequence in self.sequences:
                set_shift(self.rows[sequence.id], sequence)
        self.cache.make_room([(self.rows[s.id], self.counts[s.id]) for s in self.sequences])
        decode: list[tuple[Row, int]] = []
        chunks: list[tuple[Row, int]] = []
        for sequence in self.sequences:
            row = self.rows[sequence.id]
            (decode if _runs(row) else chunks).append((row, self.counts[sequence.id]))
        decode.sort(key=lambda item: self.cache.place(item[0]))
        self.cache.begin(decode, chunks)
        self.at = self.cache.places()

    def _pictures(self) -> AbstractContextManager[None]:
        """Computes the pictures of this forward."""
        if self.forwards.pictures is None:
            return nullcontext()
        seeing = [s for s in self.sequences if s.media is not None]
        by_row = {self.rows[s.id]: s for s in seeing}
        for group in self.cache.span.groups if seeing else ():
            span = group.span
            set_blocks(span, group.home.rows[span.start : span.stop], by_row)
        parts = [Part(s, self.rows[s.id].length, self.places[s.id]) for s in seeing]
        return self.forwards.pictures.over(pictured(parts, self.cache.span.positions))

    def _tokens(self) -> mx.array:
        """(padded,) every token of the forward."""
        work, tokens = self.work, np.zeros(self.cache.span.padded, dtype=np.int32)
        for sequence in self.sequences:
            chunk, places = work.chunks.get(sequence.id, 0), self.places[sequence.id]
            known = chunk + (sequence.id in self.guesses)
            first = self.rows[sequence.id].length
            tokens[places[:known]] = _padded(sequence.tokens_between(first, first + known), known)
        lazy = mx.array(tokens)
        if work.last is not None:
            running = [self.places[s.id][0] for s in work.decode[: work.last.shape[0]]]
            lazy[mx.array(np.array(running, dtype=np.int32))] = work.last
        if work.proposal is not None:
            lazy = self._with_guesses(lazy, mx.array(work.proposal.guesses))
        return lazy

    def _with_guesses(self, tokens: mx.array, guesses: mx.array) -> mx.array:
        """The tokens with the guesses, (B, k), behind each row's last one."""
        targets, sources = [], []
        for index, sequence in enumerate(self.work.decode):
            count = self.guesses[sequence.id]
            if count:
                targets.append(self.places[sequence.id][-count:])
                sources.append(index * guesses.shape[1] + np.arange(count))
        if targets:
            chosen = mx.flatten(guesses)[mx.array(np.concatenate(sources).astype(np.int32))]
            tokens[mx.array(np.concatenate(targets).astype(np.int32))] = chosen
        return tokens

    def _wanted(self) -> tuple[np.ndarray, list[tuple[Sequence, int]]]:
        """Places whose logits are wanted: of tokens that sample, then of scored prompts."""
        parts = []
        for sequence in self.work.decode:
            if sequence.id in self.leaders:
                leader = self.leaders[sequence.id].id
                last = len(self.places[leader]) - 1 - self.guesses[leader]
                parts.append(self.places[leader][last : last + 1])
            else:
                parts.append(self.places[sequence.id][-1 - self.guesses[sequence.id] :])
        scored = []
        for sequence in self.work.chunked:
            count = self.work.chunks[sequence.id]
            if PromptRiders.wants_scores(sequence, self.rows[sequence.id].length):
                parts.append(self.places[sequence.id][:count])
                scored.append((sequence, count))
        if not parts:
            return np.zeros(1, dtype=np.int64), []  # a head that is given something
        return np.concatenate(parts), scored

    def _split(self, logits: mx.array, scored: list[tuple[Sequence, int]]) -> Computed:
        computed = Computed()
        at = 0
        if self.work.decode:
            computed.layout = Ragged(self.work.guesses + 1)
            at = len(computed.layout.rows)
            computed.logits = logits[:at, : self.forwards.riders.vocab_size]
        for sequence, count in scored:
            first = self.rows[sequence.id].length
            part = logits[at : at + count]
            computed.scores.append(self.forwards.riders.score(part, sequence, first, count))
            at += count
        return computed

    def _pool(self, hidden: mx.array, pooled: list[Sequence]) -> None:
        for sequence in pooled:
            places = self.places[sequence.id][: self.work.chunks[sequence.id]]
            mine = hidden[int(places[0]) : int(places[-1]) + 1]
            self.forwards.riders.pool(mine, sequence, self.rows[sequence.id].length)

    def _cite(self, computed: Computed) -> None:
        cited = self.cache.cited()
        if not cited:
            return
        order = {row: index for index, row in enumerate(self.at)}
        for sequence in self.work.decode:
            owner = self.leaders.get(sequence.id, sequence)
            first = self.work.chunks.get(owner.id, 0)
            computed.cited_by[sequence.id] = (order[self.rows[owner.id]], first)
        sampling = {row for row, _ in computed.cited_by.values()}
        computed.cited = [part for part in cited if not sampling.isdisjoint(part.rows)]

    def _fork(self) -> None:
        for sequence, leader in self.work.forks:
            row = self.cache.fork(self.forwards.rows[leader.id])
            row.length -= self.guesses.get(leader.id, 0)
            self.forwards.rows[sequence.id] = row


def _runs(row: Row) -> bool:
    return bool(row.index < row.home.num_decoding)


def _padded(tokens: list[int], count: int) -> list[int]:
    """The tokens; 0 for one that the host has not read yet."""
    return tokens + [0] * (count - len(tokens))


def bucket(tokens: int) -> int:
    """How many tokens the model is given for so many, where shapes should repeat."""
    if tokens <= _GPU_GRAIN:
        return 1 << max(0, tokens - 1).bit_length()
    grain = max(_GPU_GRAIN, (1 << (tokens - 1).bit_length()) // 8)
    return -(-tokens // grain) * grain
