"""Speculation: cheap guesses of the next tokens, verified in one forward.

A guess is accepted where it is the very token that plain decoding would have
sampled at that position: the sampler draws with (seed, position), so the output
is plain decoding's, token for token, whatever was guessed and however many. With
a deterministic guess this accepts exactly as often as rejection sampling
(Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318), since both
accept token x with the probability that the target gives it.

How far to guess is decided for each step: the measured time of a forward of
1, 2, ... tokens at this batch size against the tokens that the rows' acceptance
so far promises. Where it does not pay, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.models import cpu_ops
from mlx_parallm.models.adapt import adapt
from mlx_parallm.models.base import MAX_WIDTH, BatchedCache
from mlx_parallm.models.span import Row

_DECAY = 0.9  # of the running averages
_PATIENCE = 64  # plain steps between two looks at whether guessing pays again
_MAX_PATIENCE = 1024
_MOST_TRIES = 4  # of a length whose time is not known
_HOPED = 0.05  # time of one more guess, in plain steps, before any was measured


class Drafter(Protocol):
    """Guesses tokens for a batch. Rows are joined, left and moved with the target's."""

    @property
    def caches(self) -> list[BatchedCache]:
        """Caches whose rows must follow the target's."""

    def propose(
        self, sequences: list[Sequence], rows: list[Row], most: int
    ) -> tuple[mx.array, np.ndarray]:
        """(B, most) int32 guesses and (B,) how many of them count, row by row."""

    def reset(self) -> None:
        """Forget every row."""


class NgramDrafter:
    """Prompt look-up: what followed the last few tokens the last time they occurred.

    Source: Saxena, "Prompt Lookup Decoding" (2023).
    """

    caches: list[BatchedCache] = []  # noqa: RUF012  no model, no cache

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self.longest, self.shortest = longest, shortest
        self._indices: dict[int, _NgramIndex] = {}

    def propose(
        self, sequences: list[Sequence], rows: list[Row], most: int
    ) -> tuple[mx.array, np.ndarray]:
        """See Drafter."""
        guesses = np.zeros((len(sequences), most), dtype=np.int32)
        counts = np.zeros(len(sequences), dtype=np.int32)
        alive = {}
        for place, sequence in enumerate(sequences):
            index = self._indices.get(sequence.id) or _NgramIndex(self.longest, self.shortest)
            alive[sequence.id] = index
            index.extend(sequence.prompt, sequence.output)
            found = index.look_up(most)
            guesses[place, : len(found)] = found
            counts[place] = len(found)
        self._indices = alive
        return mx.array(guesses), counts

    def reset(self) -> None:
        """See Drafter."""
        self._indices = {}


class _NgramIndex:
    """Where each n-gram of a growing sequence ended last."""

    def __init__(self, longest: int, shortest: int) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._tokens: list[int] = []
        self._last: dict[tuple[int, ...], int] = {}

    def extend(self, prompt: list[int], output: list[int]) -> None:
        """Take in the tokens that are new; those at the very end are not indexed yet."""
        known = len(self._tokens)
        if known < len(prompt):
            self._tokens += prompt[known:]
        self._tokens += output[max(0, len(self._tokens) - len(prompt)) :]
        for end in range(max(1, known), len(self._tokens)):
            for size in self._sizes:
                if end >= size:
                    self._last[tuple(self._tokens[end - size : end])] = end

    def look_up(self, most: int) -> list[int]:
        """At most `most` tokens that followed the longest known ending."""
        for size in self._sizes:
            if len(self._tokens) > size:
                at = self._last.get(tuple(self._tokens[-size:]))
                if at is not None:
                    return self._tokens[at : at + most]
        return []


class ModelDrafter:
    """A smaller model with the same tokenizer guesses greedily.

    Its rows may lag behind the target's; a guess begins with catching up.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        self.model = adapt(model)
        cpu_ops.install(model)
        self.vocab_size = vocab_size
        self.cache = BatchedCache(model)

    @property
    def caches(self) -> list[BatchedCache]:
        """See Drafter."""
        return [self.cache]

    def propose(
        self, sequences: list[Sequence], rows: list[Row], most: int
    ) -> tuple[mx.array, np.ndarray]:
        """See Drafter. `rows` are the sequences' rows in this drafter's cache."""
        token = self._catch_up(sequences, rows)
        guesses = [token]
        while len(guesses) < most:
            token = self._forward(token[:, None], [1] * len(rows), 1)
            guesses.append(token)
        return mx.stack(guesses, axis=1), np.full(len(rows), most, dtype=np.int32)

    def reset(self) -> None:
        """See Drafter."""
        self.cache = BatchedCache(self.model)

    def _catch_up(self, sequences: list[Sequence], rows: list[Row]) -> mx.array:
        """(B,) the first guess, after all known tokens were computed."""
        while True:
            left = [s.num_tokens - r.length for s, r in zip(sequences, rows, strict=True)]
            width = min(max(left), MAX_WIDTH)
            # The last chunk computes every row's last token; those before it may not.
            spare = 0 if max(left) <= MAX_WIDTH else 1
            counts = [max(0, min(n - spare, width)) for n in left]
            inputs = np.zeros((len(rows), width), dtype=np.int32)
            for place, (sequence, row, count) in enumerate(
                zip(sequences, rows, counts, strict=True)
            ):
                inputs[place, :count] = sequence.tokens[row.length : row.length + count]
            token = self._forward(mx.array(inputs), counts, width)
            if not spare:
                return token
            mx.eval(self.cache.arrays)

    def _forward(self, inputs: mx.array, counts: list[int], width: int) -> mx.array:
        self.cache.begin(0, len(counts), width, counts)
        logits = self.model(inputs, cache=self.cache.layers)
        last = mx.array(np.maximum(np.array(counts, dtype=np.int32) - 1, 0))[:, None, None]
        best = mx.argmax(logits[..., : self.vocab_size], axis=-1, keepdims=True)
        self.cache.commit()
        return mx.take_along_axis(best, last, axis=1)[:, 0, 0].astype(mx.int32)


@dataclass(slots=True)
class SpeculativeStats:
    """What speculation did since start; times in seconds."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    rows: int = 0
    off_steps: int = 0
    draft_time: float = 0.0
    current_length: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Accepted over guessed."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_accepted_length(self) -> float:
        """Tokens a verified row gained in a step, its own sampled one included."""
        return 1 + self.accepted / self.rows if self.rows else 0.0


@dataclass(slots=True)
class _Cost:
    """Running average of a step's seconds, and how often it was measured."""

    seconds: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        if self.count <= 3:  # the first ones include allocation and tracing
            self.seconds = seconds if self.count == 1 else min(self.seconds, seconds)
        else:
            # Slow steps are mostly other processes' doing.
            seconds = min(seconds, 2 * self.seconds)
            self.seconds += (1 - _DECAY) * (seconds - self.seconds)


@dataclass(eq=False)
class LengthController:
    """How many tokens to guess: per row by acceptance, per batch by measured cost."""

    ceiling: int
    stats: SpeculativeStats = field(default_factory=SpeculativeStats)
    _costs: dict[tuple[int, int], _Cost] = field(default_factory=dict)
    _tries: dict[tuple[int, int], int] = field(default_factory=dict)
    _rates: dict[int, float] = field(default_factory=dict)
    _average: float = 0.7
    _plain_steps: int = 0
    _patience: int = _PATIENCE

    def choose(self, sequences: Items[Sequence]) -> int:
        """Guesses for this step, 0 where plain decoding is faster."""
        willing = [s for s in sequences if s.params.speculative is not False]
        if not willing:
            return self._decide(0)
        rates = [self._rates.get(s.id, self._average) for s in willing]
        size, plain = len(sequences), self._cost(len(sequences), 0)
        if plain is None:
            return self._decide(0)  # measure the plain step first
        best, best_rate = 0, size / plain
        for length in range(1, self.ceiling + 1):
            cost = self._estimate(size, length, plain)
            gained = sum(_expected(rate, length) for rate in rates)
            if (size + gained) / cost > 1.02 * best_rate:
                best, best_rate = length, (size + gained) / cost
        if best and self._cost(size, best) is None:
            key = (_bucket(size), best)
            self._tries[key] = self._tries.get(key, 0) + 1
        return self._decide(best)

    def _estimate(self, size: int, length: int, plain: float) -> float:
        """Seconds of a step: measured, or from its neighbours, or hopeful where there is none.

        A step with more guesses takes no less time, so one measurement says much
        about the lengths around it; each is tried only while it may be the best.
        """
        known = self._cost(size, length)
        if known is not None:
            return known
        if self._tries.get((_bucket(size), length), 0) >= _MOST_TRIES:
            return float("inf")  # its steps were never alone to be measured
        below, above = (0, plain), None
        for other in range(1, self.ceiling + 1):
            cost = self._cost(size, other)
            if cost is not None and other < length:
                below = (other, cost)
            elif cost is not None and above is None:
                above = (other, cost)
        if above is None:
            return below[1] + _HOPED * plain * (length - below[0])
        share = (length - below[0]) / (above[0] - below[0])
        return below[1] + share * (above[1] - below[1])

    def _decide(self, length: int) -> int:
        """Plain steps are interrupted now and then, to see whether times changed."""
        self.stats.current_length = length
        if length:
            self._plain_steps, self._patience = 0, _PATIENCE
            return length
        self.stats.off_steps += 1
        self._plain_steps += 1
        if self._plain_steps < self._patience:
            return 0
        self._plain_steps = 0
        self._patience = min(2 * self._patience, _MAX_PATIENCE)
        self._average = max(self._average, 0.5)
        return min(2, self.ceiling)

    def measured(self, size: int, length: int, seconds: float) -> None:
        """A step of `size` rows that guessed `length` tokens took so long."""
        self._costs.setdefault((_bucket(size), length), _Cost()).add(seconds)

    def verified(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """A row's guesses were looked at."""
        self.stats.rows += 1
        self.stats.drafted += drafted
        self.stats.accepted += accepted
        if not drafted:
            return
        # The guess behind the first wrong one says nothing.
        tried = min(drafted, accepted + 1)
        rate = self._rates.get(sequence.id, self._average)
        for place in range(tried):
            rate += 0.15 * ((1.0 if place < accepted else 0.0) - rate)
        self._rates[sequence.id] = rate
        self._average += 0.01 * (rate - self._average)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._rates.pop(sequence.id, None)

    def _cost(self, size: int, length: int) -> float | None:
        cost = self._costs.get((_bucket(size), length))
        return cost.seconds if cost is not None and (cost.count >= 2 or length) else None


def _bucket(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _expected(rate: float, length: int) -> float:
    """Guesses of `length` that are accepted on average, each with this rate."""
    return sum(rate**place for place in range(1, length + 1))
