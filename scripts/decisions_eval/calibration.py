"""Accuracy and calibration of probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

BINS = 10


@dataclass(frozen=True)
class Judged:
    """A likeliest answer: its probability, and whether it was right."""

    probability: float
    right: bool


@dataclass(frozen=True)
class Bin:
    """Answers of about the same probability.

    Attributes:
        mean: of their probabilities. share: of them were right.
    """

    count: int
    mean: float
    share: float


@dataclass(frozen=True)
class Calibration:
    """How well probabilities tell how often answers are right.

    Attributes:
        expected_error: the mean distance of probability and share of right answers over bins
            of equal width, weighted by their answers (Naeini et al., AAAI 2015).
        brier: mean squared distance of the likeliest answer's probability and 1 or 0.
    """

    count: int
    accuracy: float
    expected_error: float
    brier: float
    bins: tuple[Bin, ...]


def calibration(judged: Sequence[Judged], bins: int = BINS) -> Calibration:
    """The figures of at least one answer."""
    parts: list[list[Judged]] = [[] for _ in range(bins)]
    for one in judged:
        parts[min(int(one.probability * bins), bins - 1)].append(one)
    filled = tuple(_bin(part) for part in parts if part)
    count = len(judged)
    return Calibration(
        count=count,
        accuracy=sum(one.right for one in judged) / count,
        expected_error=sum(b.count * abs(b.mean - b.share) for b in filled) / count,
        brier=sum((one.probability - one.right) ** 2 for one in judged) / count,
        bins=filled,
    )


def _bin(part: Sequence[Judged]) -> Bin:
    count = len(part)
    mean = sum(one.probability for one in part) / count
    return Bin(count, mean, sum(one.right for one in part) / count)
