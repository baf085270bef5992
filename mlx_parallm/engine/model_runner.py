"""The ModelRunner: a plan becomes arrays, a forward, and sampled tokens.

Rows of the batch lie in two runs of neighbouring slots: first those that decode,
behind them those that still catch up with their prompts. A step is at most two
forwards, one over each run.
"""

from __future__ import annotations

import time
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.cache.extended_mind import Cited
from mlx_parallm.cache.packing import can_pack, token_logits
from mlx_parallm.cache.prefix_store import PrefixStore
from mlx_parallm.cache.span import Row
from mlx_parallm.engine.drafter import Drafter, Proposal
from mlx_parallm.engine.pace import Pace
from mlx_parallm.engine.sampler import Sampled, Sampler, token_logprobs
from mlx_parallm.engine.scheduler import Plan
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.speculative import LengthController
from mlx_parallm.engine.step import (
    Guessed,
    Launched,
    PromptScores,
    Result,
    keep_scores,
    read_logprobs,
)
from mlx_parallm.engine.step_clock import StepClock
from mlx_parallm.memory import citations
from mlx_parallm.models import replacements
from mlx_parallm.models.adapt import adapt
from mlx_parallm.models.attention import install_attention
from mlx_parallm.models.hidden import HiddenTap

_PADDING_SHARE = 0.4  # of a token's time that a place of padding takes in a packed forward
_FULL = 0.85  # share of real tokens in a padded grid, from which on packing does not pay


class ModelRunner:
    """Owns the model, the batch's caches and the sampler; one thread only.

    Args:
        model: an mlx-lm model.
        vocab_size: columns of its logits that are tokens.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        self.model = adapt(model)
        if not replacements.install(model):
            install_attention(model)
        self.vocab_size = vocab_size
        self.cache = BatchedCache(model)
        self.sampler = Sampler(vocab_size)
        self.hidden = HiddenTap(model)
        self._sums: dict[int, mx.array] = {}
        self.packs = False
        self.prefixes: PrefixStore | None = None
        self.drafter: Drafter | None = None
        self.lengths = LengthController(0)
        self.pace = Pace()
        self._rows: dict[int, list[Row]] = {}
        self._num_decoding = 0
        self._previous: tuple[list[Sequence], mx.array] | None = None
        self._cited: list[Cited] = []
        self._clock = StepClock()

    @property
    def num_rows(self) -> int:
        """Rows that are held."""
        return len(self.cache.rows)

    @property
    def caches(self) -> list[BatchedCache]:
        """The model's cache and those whose rows follow it."""
        return [self.cache, *(self.drafter.caches if self.drafter is not None else [])]

    def speculate(self, drafter: Drafter, most: int) -> None:
        """Guess up to `most` tokens a step; before the first row joins."""
        self.drafter = drafter
        self.packs = can_pack(self.model)
        padding = _PADDING_SHARE if self.packs else 1.0
        self.lengths = LengthController(most, drafter.is_free, padding)

    def guesses(self, sequences: list[Sequence]) -> int:
        """Tokens worth guessing for these sequences in their next step.

        More than 0 needs every token so far on the host: the step before must
        be collected first.
        """
        if self.drafter is None or not sequences:
            return 0
        return self.lengths.choose(sequences, lambda: self._lag(sequences))

    def _lag(self, sequences: list[Sequence]) -> int:
        """Tokens that the drafter has to read first; of rows that have not joined, none yet."""
        assert self.drafter is not None
        joined = [s for s in sequences if s.id in self._rows]
        return self.drafter.lag(joined, [self._rows[s.id][-1] for s in joined])

    def launch(self, plan: Plan, guesses: int = 0) -> Launched:
        """Start a step; returns while it computes."""
        try:
            return self._launch(plan, guesses)
        finally:
            for _, match in plan.loads:
                assert self.prefixes is not None
                self.prefixes.tree.unlock(match)

    def _launch(self, plan: Plan, guesses: int) -> Launched:
        began = time.perf_counter()
        for sequence in plan.release:
            self._release(sequence)
        for sequence, match in plan.loads:
            assert self.prefixes is not None
            self._join(sequence)
            self.prefixes.load(self.cache, self._row(sequence), match)
        catching_up = time.perf_counter()
        scores = self._catch_up(plan.prefill) if plan.prefill else []
        if plan.prefill and plan.decode:
            tokens = sum(count for _, count in plan.prefill)
            self.pace.caught_up(tokens, time.perf_counter() - catching_up)
        for sequence, leader in plan.forks:
            rows = zip(self.caches, self._rows[leader.id], strict=True)
            self._rows[sequence.id] = [cache.fork(row) for cache, row in rows]
        besides = time.perf_counter() - began
        sampled, guessed = self._decode(plan.decode, guesses) if plan.decode else (None, None)
        if guessed is not None:
            besides += guessed.reading
        arrays = [array for score in scores for array in score.arrays]
        if sampled is not None:
            arrays += sampled.arrays
        cited, self._cited = self._cited, []
        arrays += [array for part in cited for array in (part.ids, part.weights)]
        # The caches too: a graph that is not evaluated grows from step to step.
        mx.async_eval(arrays, list(self._sums.values()), *(cache.arrays for cache in self.caches))
        if self.drafter is not None:
            self.drafter.observe(plan.decode, guessing=guesses > 0)
        alone = not (plan.prefill or plan.loads or plan.forks or plan.release)
        waited = self._clock.launched(alone=alone, besides=besides)
        complete = [(s, self._sums.get(s.id)) for s in plan.complete]
        return Launched(plan.decode, sampled, guessed, scores, complete, began, waited, cited)

    def collect(self, launched: Launched) -> list[Result]:
        """Wait for a step and read what it computed."""
        for scores in launched.scores:
            keep_scores(scores)
        results = [Result(s, complete=True, pooled=v) for s, v in launched.complete]
        if launched.sampled is not None:
            if launched.guessed is None:
                results += self._read_plain(launched.sampled, launched.decode)
            else:
                results += self._read_guessed(launched.sampled, launched.guessed, launched.decode)
            self._cite(launched, results)
        self._measure(launched)
        return results

    def rest(self) -> None:
        """Nothing runs: the time until the next step is not its own."""
        self._clock.rest()

    def reset(self) -> None:
        """Forget every row, after a step failed."""
        self.cache = BatchedCache(self.model)
        if self.drafter is not None:
            self.drafter.reset()
        self.sampler.forget()
        self._rows.clear()
        self._sums.clear()
        self._num_decoding = 0
        self._previous, self._cited = None, []
        self._clock = StepClock()

    # Results

    def _read_plain(self, sampled: Sampled, sequences: list[Sequence]) -> list[Result]:
        tokens = np.array(sampled.tokens).tolist()
        logprobs = read_logprobs(sampled, tokens, sequences)
        results = []
        for row, (sequence, token) in enumerate(zip(sequences, tokens, strict=True)):
            found = logprobs.get(row)
            results.append(Result(sequence, [token], None if found is None else [found]))
        return results

    def _read_guessed(
        self, sampled: Sampled, guessed: Guessed, sequences: list[Sequence]
    ) -> list[Result]:
        """Accept each row's guesses up to its first wrong one, and take back the rest."""
        guesses = np.array(guessed.guesses)
        self.lengths.stats.draft_time += time.perf_counter() - guessed.began
        tokens = np.array(guessed.tokens)
        accepted = guessed.accepted(guesses, tokens).tolist()
        firsts = guessed.layout.firsts.tolist()
        rows = [sequences[row] for row in guessed.layout.rows.tolist()]
        logprobs = read_logprobs(sampled, tokens.tolist(), rows)
        results = []
        for place, (sequence, count) in enumerate(zip(sequences, accepted, strict=True)):
            drafted, first = int(guessed.counts[place]), firsts[place]
            self.cache.rewind(self._rows[sequence.id][0], drafted - count)
            self.lengths.verified(sequence, drafted, count)
            found = [logprobs[first + i] for i in range(count + 1) if first + i in logprobs]
            taken = tokens[first : first + count + 1].tolist()
            results.append(Result(sequence, taken, found or None))
        assert self.drafter is not None
        self.drafter.learn(guessed.counts.tolist(), accepted)
        self._rewind_drafts(sequences)
        return results

    def _rewind_drafts(self, sequences: list[Sequence]) -> None:
        """A drafter's rows hold guesses that may be wrong: back to what the target has."""
        for place, cache in enumerate(self.caches[1:], start=1):
            for sequence in sequences:
                target, row = self._rows[sequence.id][0], self._rows[sequence.id][place]
                cache.rewind(row, max(0, row.length - target.length))

    def _measure(self, launched: Launched) -> None:
        seconds, alone = self._clock.read(launched.began, waited=launched.waited)
        if alone and launched.decode and launched.guessed is None:
            self.pace.decoded(seconds)
        if self.drafter is None or not launched.decode:
            return
        work = 0.0 if launched.guessed is None else self.lengths.work(launched.guessed.counts)
        size, waited = len(launched.decode), launched.waited
        self.lengths.measured(size, work, seconds, waited=waited, alone=alone)
        self.lengths.stats.steps += work > 0

    # Rows

    def _release(self, sequence: Sequence) -> None:
        rows = self._rows.pop(sequence.id, None)
        if rows is None:
            return
        self.lengths.forget(sequence)
        if self.drafter is not None:
            self.drafter.forget(sequence)
        self._sums.pop(sequence.id, None)
        if self.prefixes is not None:
            self.prefixes.save(self.cache, rows[0], sequence)
            self.prefixes.forget(sequence)
        for row in rows:
            row.length = 0  # or what it holds would be moved with it
        if rows[0].index < self._num_decoding:
            self._num_decoding -= 1
            self._swap(rows, self._num_decoding)
        for cache, row in zip(self.caches, rows, strict=True):
            cache.leave(row)

    def _to_decoding(self, sequence: Sequence) -> None:
        """Move a row that has caught up from the second run of slots to the first."""
        rows = self._rows[sequence.id]
        if rows[0].index >= self._num_decoding:
            self._swap(rows, self._num_decoding)
            self._num_decoding += 1

    def _join(self, sequence: Sequence) -> None:
        """Give a sequence its row, when there is something to put into it and not before."""
        if sequence.id in self._rows:
            return
        rows = self._rows[sequence.id] = [cache.join() for cache in self.caches]
        if sequence.memory is not None:
            rows[0].memory, rows[0].shift = sequence.memory, sequence.memory.shift

    def _cite(self, launched: Launched, results: list[Result]) -> None:
        """Add the citations of a step to its results."""
        if not launched.cited:
            return
        by_row = citations.read(launched.cited)
        place = {sequence.id: row for row, sequence in enumerate(launched.decode)}
        for result in results:
            found = by_row.get(place.get(result.sequence.id, -1))
            if found is not None:
                result.citations = found[: len(result.tokens)]

    def _line_up(self, sequences: list[Sequence]) -> None:
        """Make rows that catch up neighbours: those between would be computed too."""
        rows = sorted((self._rows[s.id] for s in sequences), key=lambda rows: rows[0].index)
        for index, row in enumerate(rows, start=self._num_decoding):
            self._swap(row, index)

    def _swap(self, rows: list[Row], index: int) -> None:
        for cache, row in zip(self.caches, rows, strict=True):
            cache.swap(row, cache.rows[index])

    def _row(self, sequence: Sequence) -> Row:
        return self._rows[sequence.id][0]

    # Forwards

    def _catch_up(self, chunks: list[tuple[Sequence, int]]) -> list[PromptScores]:
        """Compute known tokens; their logits only where someone wants them."""
        for sequence, _ in chunks:
            self._join(sequence)
        self._line_up([s for s, _ in chunks])
        by_row = {self._row(s).index: (s, n) for s, n in chunks}
        start, stop = min(by_row), max(by_row) + 1
        width = max(count for _, count in chunks)
        counts = [by_row[r][1] for r in range(start, stop)]
        inputs = np.zeros((stop - start, width), dtype=np.int32)
        for index, (sequence, count) in by_row.items():
            first = self._row(sequence).length
            inputs[index - start, :count] = sequence.tokens_between(first, first + count)
        for sequence, _ in chunks:
            self._row(sequence).expected = sequence.num_tokens
        self.cache.begin(start, stop, width, counts)
        pooled = [(index - start, s, n) for index, (s, n) in by_row.items() if s.pooling]
        if pooled:
            self.hidden.open()
        logits = self.model(mx.array(inputs), cache=self.cache.layers)
        if pooled:
            self._pool(self.hidden.take(), pooled)
        scores = [
            self._score(logits[index - start], sequence, count)
            for index, (sequence, count) in by_row.items()
            if self._wants_scores(sequence)
        ]
        self.cache.commit()
        # The decoding rows write to the same buffers next, in place only if nothing
        # that is still to be computed reads from them.
        mx.eval(self.cache.arrays)
        if self.prefixes is not None:
            for sequence, _ in chunks:
                self.prefixes.save_chunk(self.cache, self._row(sequence), sequence)
        return scores

    def _pool(self, hidden: mx.array, rows: list[tuple[int, Sequence, int]]) -> None:
        """Add a chunk's hidden states, (B, T, D), to its pooling rows' results."""
        for row, sequence, count in rows:
            mine = hidden[row, :count].astype(mx.float32)
            if sequence.pooling == "mean":
                size = len(sequence.prompt) - 1
                before = 0.0 if self._row(sequence).length == 0 else self._sums[sequence.id]
                self._sums[sequence.id] = before + mine.sum(axis=0) / size
            elif sequence.pooling == "last" or self._row(sequence).length == 0:
                self._sums[sequence.id] = mine[0 if sequence.pooling == "cls" else -1]

    def _wants_scores(self, sequence: Sequence) -> bool:
        return (
            sequence.params.prompt_logprobs is not None
            and not sequence.output  # they went out with the first token
            and self._row(sequence).length < len(sequence.prompt) - 1
        )

    def _score(self, logits: mx.array, sequence: Sequence, count: int) -> PromptScores:
        first = self._row(sequence).length
        count = min(count, len(sequence.prompt) - 1 - first)
        targets = mx.array(sequence.prompt[first + 1 : first + 1 + count])
        top = max(1, sequence.params.prompt_logprobs or 0)
        logits = logits[:count, : self.vocab_size].astype(mx.float32)
        return PromptScores(sequence, first + 1, *token_logprobs(logits, targets, top))

    def _decode(self, sequences: list[Sequence], most: int) -> tuple[Sampled, Guessed | None]:
        for sequence in sequences:
            self._join(sequence)
            self._to_decoding(sequence)
        sequences.sort(key=lambda s: self._row(s).index)
        if most:
            began = time.perf_counter()
            proposal = self._propose(sequences, most)
            if proposal is not None:
                return self._decode_guessed(sequences, proposal, began)
            self.lengths.stats.draft_time += time.perf_counter() - began
        tokens = self._last_tokens(sequences)
        self.cache.begin(0, self._num_decoding, 1, [1] * self._num_decoding)
        logits = self.model(tokens[:, None], cache=self.cache.layers)[:, -1, : self.vocab_size]
        sampled = self.sampler.sample(logits, sequences)
        self._cited = self.cache.cited()
        self.cache.commit()
        self._previous = (sequences, sampled.tokens)
        return sampled, None

    def _propose(self, sequences: list[Sequence], most: int) -> Proposal | None:
        """Guesses that are worth verifying; None where there are none."""
        assert self.drafter is not None
        rows = [self._rows[s.id][-1] for s in sequences]
        proposal = self.drafter.propose(sequences, rows, most)
        self.lengths.caught_up(proposal.caught_up, proposal.seconds)
        room = np.maximum([_room(s) for s in sequences], 0)
        proposal.counts = np.minimum(proposal.counts, room).astype(np.int32)
        if not self.lengths.narrow(proposal):
            for sequence in sequences:
                self.lengths.verified(sequence, 0, 0)
            return None
        return proposal

    def _decode_guessed(
        self, sequences: list[Sequence], proposal: Proposal, began: float
    ) -> tuple[Sampled, Guessed]:
        """Compute each row's last token and its guesses behind it, in one forward.

        began: when guessing began.
        """
        counts, width = proposal.counts, int(proposal.counts.max()) + 1
        guesses = mx.array(proposal.guesses)[:, : width - 1]
        last = mx.array(np.array([_last(s) for s in sequences], dtype=np.int32))
        grid = mx.concatenate([last[:, None], guesses], axis=1)
        packed = self.packs and counts.sum() + len(counts) < _FULL * grid.size
        span = self.cache.begin(0, self._num_decoding, width, (counts + 1).tolist(), packed=packed)
        logits = token_logits(self.model, self.cache, grid)[:, : self.vocab_size]
        self._cited = self.cache.cited()
        self.cache.commit()
        sampled = self.sampler.sample_ahead(logits, sequences, guesses, span.layout)
        self._previous = None
        guessed = Guessed(guesses, counts, span.layout, sampled.tokens, began, proposal.seconds)
        return sampled, guessed

    def _last_tokens(self, sequences: list[Sequence]) -> mx.array:
        """(B,) each sequence's newest token, also where the host has not read it yet."""
        same = self._previous is not None and _same(self._previous[0], sequences)
        if self._previous is not None and same and all(s.in_flight for s in sequences):
            return self._previous[1]
        known = np.array([0 if s.in_flight else _last(s) for s in sequences], dtype=np.int32)
        flying = [r for r, s in enumerate(sequences) if s.in_flight]
        if not flying or self._previous is None:
            return mx.array(known)
        place = {s.id: r for r, s in enumerate(self._previous[0])}
        source = [place.get(s.id, 0) for s in sequences]
        lazy = self._previous[1][mx.array(source)]
        return mx.where(mx.array([bool(s.in_flight) for s in sequences]), lazy, mx.array(known))


def _same(one: list[Sequence], other: list[Sequence]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _last(sequence: Sequence) -> int:
    return sequence.output[-1] if sequence.output else sequence.prompt[-1]


def _room(sequence: Sequence) -> int:
    """Guesses that a sequence can use: one token comes without a guess."""
    if sequence.params.speculative is False:
        return 0
    return sequence.params.max_tokens - sequence.num_sampled - 1
