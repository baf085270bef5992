"""How long a replica's step takes by the tokens that it computes: measured, kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Curve:
    """Measured steps.

    Attributes:
        model: what was measured.
        points: tokens of a step -> seconds; straight lines between them.
    """

    model: str
    points: Mapping[int, float]

    def table(self, most: int) -> Sequence[float]:
        """Seconds of steps with 0 to `most` tokens; beyond the points the last slope goes on."""
        sizes = sorted(self.points)
        times = np.maximum.accumulate([self.points[size] for size in sizes])
        found = np.interp(np.arange(most + 1), sizes, times)
        if len(sizes) > 1 and most > sizes[-1]:
            slope = (times[-1] - times[-2]) / (sizes[-1] - sizes[-2])
            beyond = np.arange(sizes[-1], most + 1)
            found[sizes[-1] :] = times[-1] + slope * (beyond - sizes[-1])
        return [float(seconds) for seconds in found]

    def write(self, path: Path) -> None:
        """Keep it."""
        points = {str(size): seconds for size, seconds in self.points.items()}
        text = json.dumps({"model": self.model, "seconds": points}, indent=2)
        path.write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Curve:
        """One that write() wrote.

        Raises:
            ValueError: the file holds none.
        """
        found = json.loads(path.read_text(encoding="utf-8"))
        try:
            points = {int(size): float(s) for size, s in found["seconds"].items()}
            return cls(str(found["model"]), points)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} holds no curve: {error}") from None
