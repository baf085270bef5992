"""What an engine benchmark runs, and when its tokens came."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Work:
    """One sequence to generate.

    Attributes:
        prompt: token ids.
        tokens: how many to generate.
        sampling: fields of SamplingParams; end tokens are ignored unless it says so.
    """

    prompt: list[int]
    tokens: int
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Timing:
    """When tokens came, in seconds since the start.

    Attributes:
        times: one list per piece of work, in its order.
        finished: how many ended with all of their tokens.
        peak_bytes: the most memory that MLX held meanwhile, weights included; 0 where nobody
            looked.
    """

    times: list[list[float]]
    finished: int = 0
    peak_bytes: int = 0

    @property
    def tokens_per_second(self) -> float:
        """All generated tokens over the time to the last one, prompts included."""
        return sum(map(len, self.times)) / max(t[-1] for t in self.times if t)

    def gaps(self, first: int = 0, last: int | None = None) -> list[float]:
        """Seconds between neighbouring tokens of work first..last."""
        chosen = self.times[first:last]
        return [b - a for times in chosen for a, b in itertools.pairwise(times)]

    def steps(self) -> list[float]:
        """Seconds per step while every piece of work is decoding."""
        start = max(times[0] for times in self.times)
        end = min(times[-1] for times in self.times)
        moments = [t for t in self.times[0] if start <= t <= end]
        return [b - a for a, b in itertools.pairwise(moments)]


class Side(Protocol):
    """A way to run work."""

    name: str

    def run(self, work: Sequence[Work], *, late: Sequence[tuple[int, Work]] = ()) -> Timing:
        """Generate everything.

        Args:
            late: (n, work): added when work 0 has n tokens; timed behind the others.
        """
        ...
