"""The Pace: how many prompt tokens a step may compute beside rows that decode.

A chunk of so many tokens takes longer the longer the context before it is, and how
long, compared with a step of the rows that wait for it, depends on the model and the
machine. So it is measured.
"""

from __future__ import annotations

_MOST_STEPS = 1.5  # decode steps that a chunk may take
_GRAIN = 8  # tokens; few different shapes
_NEW = 0.3  # weight of the newest measurement


class Pace:
    """Suits chunks to the time of a decode step."""

    def __init__(self) -> None:
        self._step: float | None = None
        self._token: float | None = None
        self._cheapest: float | None = None

    def decoded(self, seconds: float) -> None:
        """A step without prompts took so long."""
        self._step = _average(self._step, seconds)

    def caught_up(self, tokens: int, seconds: float) -> None:
        """A chunk of so many tokens, beside rows that decode, took so long."""
        each = seconds / tokens
        # One slow chunk is mostly another process' doing, or memory that grew.
        if self._token is not None:
            each = min(each, 2 * self._token)
        self._token = _average(self._token, each)
        self._cheapest = min(self._cheapest or self._token, self._token)

    def chunk(self, most: int) -> int:
        """Tokens of a chunk: `most`, or fewer that take 1.5 decode steps, or at least the
        compute of half of `most` behind no context."""
        if self._step is None or self._token is None or self._cheapest is None:
            return most
        fair = _MOST_STEPS * self._step / self._token
        least = max(most / 4, most / 2 * self._cheapest / self._token)
        tokens = int(min(most, max(fair, least)))
        return max(tokens // _GRAIN * _GRAIN, min(most, _GRAIN))


def _average(old: float | None, new: float) -> float:
    return new if old is None else old + _NEW * (new - old)
