"""Media: the pictures of one sequence. No mlx here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mlx_parallm.models.vision.prepared import PictureSpan, axis_positions, key_tokens

if TYPE_CHECKING:
    from mlx_parallm.models.vision.families import Whole
    from mlx_parallm.models.vision.tower import Features


class Media:
    """Where pictures lie in a sequence's prompt, and which of them have features now.

    Args:
        ids: the whole prompt.
        spans: in their order there.
        axes: positions are counted in time, height and width.
        whole: tokens of a picture look at all of it, so that it is computed in one forward: in
            which layers, see Family.

    Attributes:
        features: of each span; None where they are to be computed, or no longer needed.
        keys: the prompt as prefixes are found by.
        positions: (3, len(ids)) int32; None where each token has one.
    """

    def __init__(
        self,
        ids: Sequence[int],
        spans: Sequence[PictureSpan],
        *,
        axes: bool = False,
        whole: Whole | None = None,
    ) -> None:
        self.whole = whole
        self.spans = tuple(spans)
        self.features: list[Features | None] = [None] * len(self.spans)
        self.keys = key_tokens(ids, self.spans)
        self.positions = axis_positions(len(ids), self.spans) if axes else None
        self._behind = 0 if self.positions is None else int(self.positions[:, -1].max()) + 1
        self._is_word = np.ones(len(ids), dtype=bool)
        for span in self.spans:
            self._is_word[span.places] = False

    def copy(self) -> Media:
        """The same for another sequence with this prompt."""
        made = object.__new__(Media)
        made.__dict__.update(self.__dict__, features=[None] * len(self.spans))
        return made

    def before(self, ids: Sequence[int]) -> Media:
        """The same for a sequence whose prompt goes on behind this one's.

        Args:
            ids: the whole of it.
        """
        return Media(ids, self.spans, axes=self.positions is not None, whole=self.whole)

    @property
    def num_placeholders(self) -> int:
        """Tokens that only stand for pictures."""
        return sum(len(span.places) for span in self.spans)

    def words(self, ids: Sequence[int]) -> list[int]:
        """The prompt's tokens without those that only stand for pictures."""
        return [int(token) for token in np.asarray(ids)[self._is_word]]

    def computable(self, start: int, count: int) -> int:
        """How many of the `count` tokens from `start` on can be computed with what is there.

        More than `count` where these would be a part of a picture that is computed as a whole.
        """
        stop = start + self._available(start, count)
        for span in self.spans if self.whole else ():
            if span.first < stop < span.stop:
                stop = span.first if span.first > start else span.stop
        return stop - start

    def _available(self, start: int, count: int) -> int:
        for span, features in zip(self.spans, self.features, strict=True):
            if features is None and start < span.stop:
                ahead = span.places[np.searchsorted(span.places, start)]
                return min(count, int(ahead) - start)
        return count

    def blocks_between(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(first, stop) of the pictures there whose tokens look at all of them."""
        if not self.whole:
            return []
        return [(s.first, s.stop) for s in self.spans if s.first < stop and start < s.stop]

    def forget(self, computed: int) -> None:
        """Let go of the features of pictures before this place."""
        for place, span in enumerate(self.spans):
            if span.stop <= computed:
                self.features[place] = None

    def shift(self, place: int) -> int:
        """How far the position of the token there is from its place, before or behind pictures."""
        if self.positions is None:
            return 0
        if place >= self.positions.shape[1]:
            return self._behind - int(self.positions.shape[1])
        return int(self.positions[0, place]) - place

    def positions_between(self, start: int, stop: int) -> np.ndarray:
        """(3, stop - start) of the tokens of prompt and output there."""
        assert self.positions is not None
        size = self.positions.shape[1]
        later = np.arange(max(start, size), stop) + self._behind - size
        return np.concatenate(
            [self.positions[:, start:stop], np.broadcast_to(later, (3, len(later)))], axis=1
        )
