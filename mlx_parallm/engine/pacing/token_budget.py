"""The TokenBudget: how many prompt tokens a step takes beside rows that decode. No mlx here.

Tokens that hardly lengthen a step are always taken. Beyond them a step may take so many
as keep it within `max_gap` plain steps, steps in which all rows decode: that long running
rows wait for their next token. A batch that is not full is worth more: every row that
waits for its prompt would decode at nearly no cost, so the more of them wait, the longer a
step may be.
"""

from __future__ import annotations

import numpy as np

from mlx_parallm.engine.pacing.step_curve import StepCurve

MAX_GAP = 2.0  # plain steps
_FREE = 1.15  # plain steps; prompt tokens up to there are always taken
_WAITING = 3.0  # how much longer a step may be where all rows but a few wait
_LEAST = 16  # tokens, or a long prompt would never end
_GRAIN = 8  # tokens, so that few sizes occur


class TokenBudget:
    """Prompt tokens for each step, from the measured curve.

    Args:
        curve: seconds of a step by its tokens.
        first: tokens beside decoding rows as long as the curve is not known.
        most: tokens at most.
        idle: tokens of a step in which nothing decodes.
        max_gap: plain steps that running rows wait at most, where no row waits for its prompt.
    """

    def __init__(
        self,
        curve: StepCurve,
        *,
        first: int,
        most: int,
        idle: int,
        max_gap: float = MAX_GAP,
    ) -> None:
        self.curve = curve
        self.first = first
        self.most = most
        self.idle = idle
        self.max_gap = max_gap

    def spare(self, decoding: int) -> float | None:
        """Seconds that something else may take between two steps; None where nothing decodes.

        Args:
            decoding: tokens of the rows that decode.
        """
        if not decoding:
            return None
        plain = self.curve.seconds(np.array([decoding]))
        return 0.0 if plain is None else float(plain[0]) * (self.max_gap - 1)

    def __call__(self, decoding: int, behind: int, besides: float = 0.0) -> int:
        """Prompt tokens for a step.

        Args:
            decoding: tokens of the rows that decode.
            behind: rows that wait for their prompts.
            besides: seconds that the step takes for other work.
        """
        if not decoding:
            return self.idle
        sizes = np.arange(0, self.most + 1, _GRAIN)
        seconds = self.curve.seconds(np.append(decoding + sizes, decoding + behind))
        if seconds is None:
            return min(self.first, self.most)
        plain, seconds = seconds[-1], seconds[:-1]
        waiting = behind / (behind + decoding)
        gap = max(_FREE, self.max_gap * (1 + _WAITING * waiting))
        fitting = int(np.searchsorted(seconds, gap * plain - besides, side="right")) - 1
        return min(self.most, max(_LEAST, int(sizes[max(0, fitting)])))
