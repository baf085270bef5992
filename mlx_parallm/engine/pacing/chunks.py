"""How a step's prompt tokens are divided among the rows that wait for theirs. No mlx here."""

from __future__ import annotations

from collections.abc import Iterator

from mlx_parallm.engine.plan import SchedulerConfig, rectangle
from mlx_parallm.engine.sequence import Sequence


class Chunks:
    """Divides, in the order of the rows.

    Every other step, a long prompt at the front lets the prompts behind it go first.
    """

    def __init__(self) -> None:
        self._passing = False

    def divide(
        self, behind: list[Sequence], budget: int, config: SchedulerConfig, page: int
    ) -> list[tuple[Sequence, int]]:
        """Tokens of each row's chunk; 0 where only its last token is left.

        Args:
            behind: rows that catch up, the first ones first.
            budget: tokens of them all.
            page: tokens of a page, at whose borders chunks end where states are kept there only.
        """
        chunks = [(s, 0) for s in behind if s.num_pending <= 1]
        line = [s for s in behind if s.num_pending > 1]
        if len(line) > 1 and line[0].num_pending - 1 > budget:
            self._passing = not self._passing
            if self._passing:
                line = sorted(line[1:], key=lambda s: s.num_pending)
        lefts = [s.num_pending - 1 for s in line]
        for sequence, left, width in zip(line, lefts, _widths(lefts, budget, config), strict=False):
            count = min(left, width)
            if sequence.media is not None:
                count = sequence.media.computable(sequence.num_computed, count)
            if config.aligned:
                count = _align(sequence, count, left, page)
            chunks.append((sequence, count))
        return chunks


def _widths(lefts: list[int], budget: int, config: SchedulerConfig) -> Iterator[int]:
    """Tokens of the first rows' chunks, as far as the budget goes."""
    if not config.packs:
        rows, width = rectangle(lefts, budget, config.max_width)
        yield from [width] * rows
        return
    for left in lefts:
        if budget <= 0:
            return
        width = min(left, budget, config.max_width)
        budget -= width
        yield width


def _align(sequence: Sequence, count: int, left: int, page: int) -> int:
    """Let a chunk end at the last page border within it."""
    border = (sequence.num_computed + count) // page * page
    if border <= sequence.num_computed:
        return min(count, left)
    return border - sequence.num_computed
