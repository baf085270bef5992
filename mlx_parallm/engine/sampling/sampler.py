"""Sampling: every row by its own settings, the whole batch at a time.

Order (vLLM's): penalties, logit bias, forbidden tokens, a grammar's mask, temperature,
top_k, top_p, min_p. What is reported of them is in token_logprobs.py.

Randomness is a hash of (seed, position), so a token depends on its own
request's seed and on nothing that runs beside it; one uniform number picks the
token from the cumulative distribution.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.span import Ragged
from mlx_parallm.engine.grammar.masks import Masks
from mlx_parallm.engine.sampling.cuts import DrawSettings, row_sums
from mlx_parallm.engine.sampling.penalties import Penalties
from mlx_parallm.engine.sampling.token_logprobs import Draw, LogprobRows, TokenScores
from mlx_parallm.engine.sampling.token_masks import mask_logits
from mlx_parallm.engine.sequence import SamplingParams, Sequence

_MASK64 = (1 << 64) - 1


def uniforms(seeds: np.ndarray, positions: np.ndarray, stream: int = 0) -> np.ndarray:
    """(B,) float32 in (0, 1) from uint64 seeds and positions.

    SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014) applied twice;
    `stream` separates independent numbers for one position.
    """
    with np.errstate(over="ignore"):
        mixed = _mix(seeds.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
        step = positions.astype(np.uint64) * np.uint64(4) + np.uint64(stream)
        mixed = _mix(mixed ^ (step * np.uint64(0xD1342543DE82EF95)))
    # 23 bits and a half: never 0, and far enough from 1 that u * total < total.
    steps = (mixed >> np.uint64(41)).astype(np.float32) + np.float32(0.5)
    return np.asarray(steps / np.float32(1 << 23))


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(value ^ (value >> np.uint64(31)))


@dataclass(slots=True)
class Sampled:
    """What one step sampled, still on the device.

    Attributes:
        tokens: (B,) int32.
        totals: (B, 1) sums of the model's logits: NaN where one of them is.
        picked: (B, 1) logits of the tokens where something forbids tokens: minus infinity where
            all are forbidden. None where nothing does.
        logprob_rows: rows that asked for log-probabilities, R of them.
        scores: theirs, in this order; None where no row asked.
    """

    tokens: mx.array
    totals: mx.array
    picked: mx.array | None
    logprob_rows: list[int]
    scores: TokenScores | None = None

    @property
    def arrays(self) -> list[mx.array]:
        """Everything to evaluate."""
        found = [self.tokens, self.totals]
        if self.picked is not None:
            found.append(self.picked)
        return found if self.scores is None else [*found, *self.scores.arrays]


class Sampler:
    """Samples one token for each row of a batch.

    A batch keeps its composition for many steps, so all that depends on it is
    prepared once (`_Batch`) and used until rows come or go.

    Attributes:
        share: gives all ranks that compute the model the same tokens.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.share: Callable[[mx.array], mx.array] = lambda tokens: tokens
        self._batches: dict[int, _Batch] = {}  # by micro-batch

    def sample(
        self, logits: mx.array, sequences: Items[Sequence], masks: Masks | None = None
    ) -> Sampled:
        """Sample the next token of each sequence.

        Args:
            logits: (B, V), any float type.
            sequences: the rows' owners, in order.
            masks: of rows that keep to a grammar.
        """
        batch = self._prepare(sequences)
        result = batch.sample(logits.astype(mx.float32), masks, self.share)
        batch.count(result.tokens)
        return result

    def sample_ahead(
        self,
        logits: mx.array,
        sequences: Items[Sequence],
        guesses: mx.array,
        layout: Ragged,
        masks: Masks | None = None,
    ) -> Sampled:
        """Sample each sequence's next token behind 0, 1, ... guessed ones.

        Args:
            logits: (N, V).
            guesses: (B, k) int32.
            layout: whose each of the N rows is, and behind how many guesses.
            masks: of those of the N rows that keep to a grammar.

        Returns:
            N rows. Every one is what `sample` would give there, had the guesses been right.
        """
        rows = [sequences[row] for row in layout.rows.tolist()]
        batch = _Batch(rows, logits.shape[1], None, ahead=layout.places)
        if batch.penalties is not None:
            batch.penalties.assume(guesses, layout)
        self.forget()  # its token counts do not know what will be accepted
        return batch.sample(logits.astype(mx.float32), masks, self.share)

    def distribution(self, logits: mx.array, sequences: Items[Sequence]) -> mx.array:
        """(B, V) probabilities that `sample` would draw from, for verification."""
        batch = self._prepare(sequences)
        return batch.probabilities(batch.process(logits.astype(mx.float32)))

    def forget(self) -> None:
        """Drop all prepared state (after a step failed)."""
        self._batches.clear()

    def _prepare(self, sequences: Items[Sequence]) -> _Batch:
        number = sequences[0].micro_batch if sequences else 0
        before = self._batches.get(number)
        if before is None or not before.matches(sequences):
            self._batches[number] = before = _Batch(sequences, self.vocab_size, before)
        return before

    @staticmethod
    def greedy_sampling(logits: mx.array) -> mx.array:
        """(B,) the most likely token of each row of (B, V) logits."""
        return mx.argmax(logits, axis=-1)

    @staticmethod
    def temperature_sampling(
        logits: mx.array, temperature: float = 1.0, seed: int | None = None
    ) -> mx.array:
        """(B,) tokens drawn from softmax(logits / temperature); logits (B, V).

        seed: the same one draws the same tokens; None draws anew each time.
        """
        return Sampler.top_k_top_p_sampling(logits, temperature, 0, 1.0, seed)

    @staticmethod
    def top_k_top_p_sampling(
        logits: mx.array,
        temperature: float = 1.0,
        top_k: int = 50,
        top_p: float = 0.95,
        seed: int | None = None,
    ) -> mx.array:
        """(B,) tokens drawn from the top_k tokens' top_p nucleus; logits (B, V).

        seed: as in `temperature_sampling`; row r is drawn with seed + r.
        """
        seed = secrets.randbits(62) if seed is None else seed
        settings = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
        rows = [Sequence([0], replace(settings, seed=seed + r)) for r in range(logits.shape[0])]
        return Sampler(logits.shape[-1]).sample(logits, rows).tokens


class _Batch:
    """One composition of the batch: its rows' settings as arrays."""

    def __init__(
        self,
        sequences: Items[Sequence],
        vocab_size: int,
        previous: _Batch | None,
        ahead: np.ndarray | None = None,
    ) -> None:
        self.sequences = list(sequences)
        self._ahead = np.zeros(len(self.sequences), dtype=np.int64) if ahead is None else ahead
        self.vocab_size = vocab_size
        params = [s.params for s in sequences]
        self.sampled_rows = [r for r, p in enumerate(params) if not p.is_greedy]
        self._place_of = {row: place for place, row in enumerate(self.sampled_rows)}
        self._logprobs = LogprobRows(params)
        self.min_tokens_rows = [r for r, p in enumerate(params) if p.min_tokens > 0]
        biases = [(r, p.logit_bias) for r, p in enumerate(params) if p.logit_bias]
        self._bias = _sparse(biases, vocab_size)
        self._allowed = _Allowed.of(params, vocab_size)
        self._penalties = Penalties.of(
            self.sequences, vocab_size, previous.penalties if previous else None
        )
        self._settings = DrawSettings.of([params[r] for r in self.sampled_rows])
        self._seeds = np.array(
            [(params[r].seed or 0) & _MASK64 for r in self.sampled_rows], dtype=np.uint64
        )

    def matches(self, sequences: Items[Sequence]) -> bool:
        """Whether these are the same rows in the same order."""
        mine = self.sequences
        return len(mine) == len(sequences) and all(
            a is b for a, b in zip(mine, sequences, strict=True)
        )

    @property
    def penalties(self) -> Penalties | None:
        """Token counts of the rows that need them."""
        return self._penalties

    def sample(
        self, raw: mx.array, masks: Masks | None, share: Callable[[mx.array], mx.array]
    ) -> Sampled:
        """A token for each row of (B, V) float32 logits, and what is reported of it."""
        processed = self.process(raw, masks)
        chances = self.chances(processed)
        tokens = share(self.pick(processed, chances))
        draw = Draw(raw, processed, chances, self._place_of, tokens)
        picked = None
        if processed is not raw:
            picked = mx.take_along_axis(processed, tokens[:, None], axis=-1)
        scores = self._logprobs.score(draw)
        return Sampled(tokens, row_sums(raw), picked, self._logprobs.rows, scores)

    def process(self, logits: mx.array, masks: Masks | None = None) -> mx.array:
        """(B, V) logits after penalties, bias, forbidden tokens and masks."""
        if self._penalties is not None:
            logits = self._penalties.apply(logits)
        if self._bias is not None:
            rows, ids, values = self._bias
            logits = logits.at[rows, ids].add(values)
        masked = set() if masks is None else set(masks.rows.tolist())
        forbidden = self._forbidden(masked)
        if forbidden is not None:
            rows, ids, values = forbidden
            logits = logits.at[rows, ids].add(values)
        if self._allowed is not None:
            logits = self._allowed.apply(logits)
        return logits if masks is None else mask_logits(logits, masks)

    def chances(self, logits: mx.array) -> mx.array | None:
        """(S, V) what the rows that are not greedy draw from, not normalised."""
        if not self.sampled_rows:
            return None
        if len(self.sampled_rows) < len(self.sequences):
            logits = logits[mx.array(self.sampled_rows)]
        return self._settings.probabilities(logits)

    def pick(self, logits: mx.array, chances: mx.array | None) -> mx.array:
        """(B,) int32 tokens: argmax or a draw, row by row's own setting."""
        if chances is None:
            return mx.argmax(logits, axis=-1).astype(mx.int32)
        if len(self.sampled_rows) == len(self.sequences):
            return self._draw(chances)
        tokens = mx.argmax(logits, axis=-1).astype(mx.int32)
        tokens[mx.array(self.sampled_rows)] = self._draw(chances)
        return tokens

    def probabilities(self, logits: mx.array) -> mx.array:
        """(B, V) what each row draws from; one-hot for greedy rows."""
        best = mx.argmax(logits, axis=-1, keepdims=True)
        result = (mx.arange(self.vocab_size)[None] == best).astype(mx.float32)
        kept = self.chances(logits)
        if kept is not None:
            rows = mx.array(self.sampled_rows)
            result[rows] = kept / kept.sum(axis=-1, keepdims=True)
        return result

    def count(self, tokens: mx.array) -> None:
        """Let the penalties know the new tokens."""
        if self._penalties is not None:
            self._penalties.count(tokens)

    def _draw(self, p: mx.array) -> mx.array:
        positions = np.array([self._position(r) for r in self.sampled_rows])
        u = mx.array(uniforms(self._seeds, positions))[:, None]
        cumulative = mx.cumsum(p, axis=-1)
        # Only tokens that were kept: a parallel sum may round to less behind one of them.
        # Where none was left this is token 0, and `read_faults` says so.
        beyond = (cumulative > u * cumulative[:, -1:]) & (p > 0)
        return mx.argmax(beyond, axis=-1).astype(mx.int32)

    def _forbidden(self, masked: set[int]) -> tuple[mx.array, mx.array, mx.array] | None:
        """End tokens before min_tokens; not of `masked` rows, whose masks know of them."""
        entries = [
            (r, dict.fromkeys(self.sequences[r].params.end_token_ids, -float("inf")))
            for r in self.min_tokens_rows
            if r not in masked and self._position(r) < self.sequences[r].params.min_tokens
        ]
        return _sparse(entries, self.vocab_size)

    def _position(self, row: int) -> int:
        """How many tokens were sampled before the one to come."""
        return self.sequences[row].num_sampled + int(self._ahead[row])


def _sparse(
    entries: Items[tuple[int, Mapping[int, float]]], vocab_size: int
) -> tuple[mx.array, mx.array, mx.array] | None:
    """Rows, token ids and values of the entries, or None where there are none."""
    # Ids that are no tokens of the model would be written into another row.
    flat = [(r, i, v) for r, values in entries for i, v in values.items() if 0 <= i < vocab_size]
    if not flat:
        return None
    rows, ids, values = zip(*flat, strict=True)
    return mx.array(rows), mx.array(ids), mx.array(values, dtype=mx.float32)


@dataclass(slots=True)
class _Allowed:
    """Rows that may sample some tokens only.

    Attributes:
        rows: (R,) their indices. mask: (R, V), 0 for allowed tokens, else minus infinity.
    """

    rows: mx.array
    mask: mx.array

    @classmethod
    def of(cls, params: Items[SamplingParams], vocab_size: int) -> _Allowed | None:
        """None where no row is limited."""
        rows = [row for row, p in enumerate(params) if p.allowed_token_ids]
        if not rows:
            return None
        mask = np.full((len(rows), vocab_size), -np.inf, dtype=np.float32)
        for place, row in enumerate(rows):
            mask[place, list(params[row].allowed_token_ids)] = 0.0
        return cls(mx.array(rows), mx.array(mask))

    def apply(self, logits: mx.array) -> mx.array:
        """(B, V) logits with all other tokens forbidden."""
        return logits.at[self.rows].add(self.mask)
