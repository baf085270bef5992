"""The StepCost: seconds of one time step of a plain network, measured. No mlx here."""

from __future__ import annotations

_NEW = 0.3  # weight of the newest measurement
_OUTLIER = 2.0  # a step that much slower than those before is mostly another process' doing


class StepCost:
    """Seconds by how many rows take the step together, by powers of two.

    Twice as many rows take at most twice as long: what was measured of few bounds what is expected
    of many, so that a number of rows that was slow once is tried again.
    """

    def __init__(self) -> None:
        self._levels: dict[int, float] = {}

    def measured(self, rows: int, seconds: float) -> None:
        """So many rows took so long for each time step."""
        level = rows.bit_length()
        known = self._levels.get(level)
        if known is None:
            self._levels[level] = seconds
        else:
            self._levels[level] = known + _NEW * (min(seconds, _OUTLIER * known) - known)

    def seconds(self, rows: int) -> float | None:
        """For so many rows; None before anything was measured."""
        level = rows.bit_length()
        bounds = [known * 2.0 ** max(0, level - at) for at, known in self._levels.items()]
        return min(bounds, default=None)
