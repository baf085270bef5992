"""The StepCurve: how long a step takes by how many tokens it computes, measured. No mlx here.

One curve for all work: decoding rows, guesses and chunks of prompts share one forward. Its
cost has a fixed part, reading the weights, and one that grows with the tokens, so that a
few more tokens are nearly free and many are not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_NEW = 0.3  # weight of the newest measurement
_STALE = 256  # measurements after which a level is not believed any more
_OUTLIER = 2.0  # a step that much slower than its level is mostly another process' doing
_FIRST = 3  # measurements of a level of which the fastest counts: the first ones allocate
_BELIEVED = 8  # measurements that a level needs for its full weight
_ROUNDS = 4
_FINE = 6  # levels between a number of tokens and twice as many


@dataclass(slots=True)
class _Level:
    """About so many tokens: their running average, and that of the seconds."""

    tokens: float
    seconds: float
    count: int
    at: int

    def add(self, tokens: int, seconds: float, at: int) -> None:
        self.count, self.at = self.count + 1, at
        self.tokens += _NEW * (tokens - self.tokens)
        if self.count <= _FIRST:
            self.seconds = min(self.seconds, seconds)
        else:
            self.seconds += _NEW * (min(seconds, _OUTLIER * self.seconds) - self.seconds)


class StepCurve:
    """Seconds of a step by its tokens: measured levels, straight lines between them."""

    def __init__(self) -> None:
        self._levels: dict[int, _Level] = {}
        self._measured = 0

    def measured(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._measured += 1
        level = self._levels.get(_level(tokens))
        if level is None or self._measured - level.at > _STALE:
            self._levels[_level(tokens)] = _Level(tokens, seconds, 1, self._measured)
        else:
            level.add(tokens, seconds, self._measured)

    def seconds(self, tokens: np.ndarray) -> np.ndarray | None:
        """(n,) seconds of steps with so many tokens; None before two sizes were measured.

        Between sizes that were measured several times of late these are straight lines, beyond
        them the line through all that was measured: a size that was slow once is not avoided.
        """
        fresh = [v for v in self._levels.values() if self._measured - v.at <= _STALE]
        if len(fresh) < 2:
            return None
        fresh.sort(key=lambda level: level.tokens)
        sizes = np.array([level.tokens for level in fresh])
        times = np.array([level.seconds for level in fresh])
        weights = np.array([min(level.count, _BELIEVED) for level in fresh], dtype=float)
        fixed, each = _line(sizes, times, weights)
        line = fixed + each * tokens
        known = np.array([level.count >= _FIRST for level in fresh])
        if not known.any():
            return np.asarray(line)
        sizes, times = sizes[known], np.maximum.accumulate(times[known])
        between = np.interp(tokens, sizes, times)
        found = np.where(tokens > sizes[-1], np.maximum(line, times[-1]), between)
        return np.asarray(np.where(tokens < sizes[0], np.minimum(line, times[0]), found))


def _line(sizes: np.ndarray, times: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Seconds before the first token and of each: least absolute deviations, so that single slow
    steps do not count (by reweighted least squares)."""
    fixed, each = 0.0, 0.0
    trust = weights
    for _ in range(_ROUNDS):
        mean_size, mean_time = np.average(sizes, weights=trust), np.average(times, weights=trust)
        spread = np.sum(trust * (sizes - mean_size) ** 2)
        each = float(np.sum(trust * (sizes - mean_size) * (times - mean_time)) / max(spread, 1e-12))
        each = max(each, 0.0)
        fixed = float(mean_time - each * mean_size)
        apart = np.abs(times - fixed - each * sizes)
        trust = weights / np.maximum(apart, 0.02 * mean_time)
    return fixed, each


def _level(tokens: int) -> int:
    return tokens if tokens <= _FINE else round(np.log2(tokens) * _FINE) + 100
