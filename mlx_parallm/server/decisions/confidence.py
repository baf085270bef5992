"""How sure a distribution over options is: 1 where all is on one option, 0 where it is even."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Probabilities are told with so many decimals; the next ones differ with what else is computed.
DECIMALS = 4


def shown(value: float) -> float:
    """A probability as it is told."""
    return round(value, DECIMALS)


def of_choice(probabilities: Sequence[float]) -> float:
    """How far the likeliest option is above an even chance, as a share of what it could be."""
    even = 1 / len(probabilities)
    return 1.0 if even == 1 else max(0.0, (max(probabilities) - even) / (1 - even))


def of_score(probabilities: Sequence[float]) -> float:
    """1 less the mean distance from the likeliest level, as a share of an even distribution's
    distance from its middle."""
    count = len(probabilities)
    mode = max(range(count), key=lambda level: probabilities[level])
    distance = math.fsum(p * abs(level - mode) for level, p in enumerate(probabilities))
    even = math.fsum(abs(level - (count - 1) / 2) for level in range(count)) / count
    return 1.0 if even == 0 else max(0.0, 1 - distance / even)


def mean_level(probabilities: Sequence[float]) -> float:
    """The expected level, counted from 0."""
    return math.fsum(level * p for level, p in enumerate(probabilities))
