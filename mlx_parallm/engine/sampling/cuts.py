"""Temperature, top_k, top_p and min_p: the probabilities that a token is drawn from.

Nothing here sorts a vocabulary. The cut of top_k and top_p is a threshold on
the probabilities, found by bisection on their bit patterns, which for
non-negative floats are ordered as the numbers are. Tokens that tie with the
last one kept are kept too; for top_p a tie is a relative difference of 2e-5.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import numpy as np

from mlx_parallm.cpu import ops
from mlx_parallm.engine.sequence import SamplingParams

_EXACT_HALVINGS = 31
_NUCLEUS_HALVINGS = 21
_BLOCK = 64  # entries that stand together where the likeliest ones are looked for
_STEEP = 2.0**100  # makes a step of a ramp; a power of two, so that products are exact
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(slots=True)
class Cut:
    """A setting that cuts off unlikely tokens, for the rows that have it alone: to find where
    costs many passes over the vocabulary.

    Attributes:
        rows: their indices; None is all. values: (rows, 1). largest: of the values.
    """

    rows: mx.array | None
    values: mx.array
    largest: float

    @classmethod
    def of(cls, values: Items[float], off: float) -> Cut | None:
        """None where no row has it."""
        rows = [row for row, value in enumerate(values) if value != off]
        if not rows:
            return None
        wanted = mx.array([values[row] for row in rows], dtype=mx.float32)[:, None]
        everyone = len(rows) == len(values)
        return cls(None if everyone else mx.array(rows), wanted, max(values[r] for r in rows))

    def apply(self, p: mx.array, threshold: Callable[[mx.array, mx.array], mx.array]) -> mx.array:
        """(R, V) with all entries 0 that are not above their row's threshold."""
        if self.rows is None:
            return mx.where(p > threshold(p, self.values), p, 0.0)
        least = mx.full((p.shape[0], 1), -1.0)
        least[self.rows] = threshold(p[self.rows], self.values)
        return mx.where(p > least, p, 0.0)


@dataclass(slots=True)
class DrawSettings:
    """Settings of the rows that are drawn at random, (R, 1) each; None is unused."""

    temperature: mx.array
    top_k: Cut | None
    top_p: Cut | None
    min_p: mx.array | None

    @classmethod
    def of(cls, params: Items[SamplingParams]) -> DrawSettings:
        def column(values: list[float], off: float) -> mx.array | None:
            if all(value == off for value in values):
                return None
            return mx.array(values, dtype=mx.float32)[:, None]

        return cls(
            mx.array([max(p.temperature, 1e-30) for p in params], dtype=mx.float32)[:, None],
            Cut.of([float(p.top_k) for p in params], 0.0),
            Cut.of([p.top_p for p in params], 1.0),
            column([p.min_p for p in params], 0.0),
        )

    def probabilities(self, logits: mx.array) -> mx.array:
        """(R, V) unnormalised, relative to the best token's 1; 0 where cut off."""
        # Infinite logits are as likely as each other, and finite ones impossible beside them.
        best = mx.minimum(logits.max(axis=-1, keepdims=True), _LARGEST)
        p = ops.exp(mx.minimum(logits - best, 0.0) / self.temperature)
        if self.top_k is not None:
            most = int(self.top_k.largest)
            p = self.top_k.apply(p, lambda p, k: _top_k_threshold(_likeliest(p, most), k))
        if self.top_p is not None:
            p = self.top_p.apply(p, _top_p_threshold)
        if self.min_p is not None:
            p = mx.where(p >= self.min_p, p, 0.0)
        return p


def _likeliest(p: mx.array, k: int) -> mx.array:
    """(R, C) some of the entries of p (R, V), each row's k largest among them."""
    rows, blocks = p.shape[0], p.shape[1] // _BLOCK
    if blocks < 4 * k:
        return p
    # The k largest entries lie in the k blocks with the largest maxima. A block's entries are
    # V / 64 apart, since neighbouring maxima are found side by side, with vectors.
    whole = p[:, : blocks * _BLOCK].reshape(rows, _BLOCK, blocks)
    best = mx.argpartition(-whole.max(axis=1), k - 1, axis=-1)[:, None, :k]
    chosen = mx.take_along_axis(whole, mx.broadcast_to(best, (rows, _BLOCK, k)), axis=-1)
    return mx.concatenate([chosen.reshape(rows, -1), p[:, blocks * _BLOCK :]], axis=-1)


def _top_k_threshold(p: mx.array, k: mx.array) -> mx.array:
    """(R, 1): each row's k largest entries are above it; k (R, 1)."""
    # The least positive float: an entry above it counts as 1 below.
    lowest = mx.full(k.shape, 1e-38)
    return _threshold(p, mx.array(1.0), k, lowest, _EXACT_HALVINGS)


def _top_p_threshold(p: mx.array, top_p: mx.array) -> mx.array:
    """(R, 1): each row's nucleus is above it; top_p (R, 1)."""
    mass = row_sums(p)
    # All entries up to this one together are less than the 1 - top_p left out.
    lowest = mx.maximum((1 - top_p) * mass / p.shape[-1] * 0.5, 1e-38)
    return _threshold(p, p, top_p * mass, lowest, _NUCLEUS_HALVINGS)


def _threshold(
    p: mx.array, weight: mx.array, target: mx.array, lowest: mx.array, halvings: int
) -> mx.array:
    """(R, 1): the largest threshold above which the weights still reach the target.

    Args:
        p: (R, V) in [0, 1].
        weight: what each entry above the threshold counts, at most 1.
        target, lowest: (R, 1); at `lowest` the target is taken as reached.

    Returns:
        Entries that are greater belong to the kept set.
    """
    steep = p * _STEEP
    low = lowest.view(mx.int32)
    high = p.max(axis=-1, keepdims=True).view(mx.int32)
    for _ in range(halvings):
        middle = low + (high - low) // 2
        # The weight where p > middle, 0 elsewhere: cheaper than a comparison.
        kept = mx.minimum(mx.maximum(steep - middle.view(mx.float32) * _STEEP, 0.0), weight)
        enough = row_sums(kept) >= target
        low, high = mx.where(enough, middle, low), mx.where(enough, high, middle)
    return low.view(mx.float32)


def row_sums(x: mx.array) -> mx.array:
    """(R, 1) sums of (R, V); as a product, which every backend does fast."""
    return x @ _ones(x.shape[-1])


@lru_cache(maxsize=4)
def _ones(size: int) -> mx.array:
    ones = mx.ones((size, 1))
    mx.eval(ones)
    return ones
