"""The PackedSpan: real tokens of any rows, one behind the other, in one forward.

A group is a run of neighbouring rows of one length class that attention computes
together: the decoding rows of a class, or one prompt's chunk. Groups lie one behind the
other, and within a group rows do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.span import Ragged, Span

if TYPE_CHECKING:
    from mlx_parallm.cache.batch import BatchedCache


@dataclass(frozen=True, eq=False, slots=True)
class Group:
    """Rows that attention computes together.

    Attributes:
        home: the length class that they lie in.
        span: which slots, and how many tokens each.
        first: where the group's tokens begin in the forward.
    """

    home: BatchedCache
    span: Span
    first: int

    @property
    def size(self) -> int:
        """Real tokens."""
        return int(self.span.counts.sum())

    @property
    def tokens(self) -> slice:
        """The group's tokens among the forward's."""
        return slice(self.first, self.first + self.size)


@dataclass(eq=False)
class PackedSpan:
    """One forward over groups of rows.

    Attributes:
        groups: those that decode first.
        padded: tokens that the model is given: at least as many as there are, so that few
            shapes occur.
    """

    groups: list[Group]
    padded: int
    _handles: dict[int | None, mx.array] = field(default_factory=dict)

    @cached_property
    def layout(self) -> Ragged:
        """Whose each token is: rows are counted through all groups."""
        return Ragged(np.concatenate([group.span.counts for group in self.groups]))

    @property
    def size(self) -> int:
        """N, the real tokens."""
        return len(self.layout.rows)

    @cached_property
    def positions(self) -> np.ndarray:
        """(padded,) int32, each token's position."""
        positions = np.concatenate([group.span.positions() for group in self.groups])
        return np.pad(positions, (0, self.padded - len(positions)))

    @cached_property
    def offsets(self) -> mx.array:
        """(padded,) int32, each token's position."""
        return mx.array(self.positions)

    @cached_property
    def adapters(self) -> np.ndarray | None:
        """(padded,) the slot of each token's adapter; None where no row has one."""
        if all(group.span.adapters is None for group in self.groups):
            return None
        slots = np.zeros(self.padded, dtype=np.int64)
        for group in self.groups:
            if group.span.adapters is not None:
                slots[group.tokens] = group.span.adapters[group.span.layout.rows]
        return slots

    def handle(self, window: int | None) -> mx.array:
        """An array that stands for the masks of this window, on its way through the model."""
        if window not in self._handles:
            self._handles[window] = mx.zeros((1, 1, 1, 1), mx.bool_)
        return self._handles[window]

    def window_of(self, mask: object) -> int | None:
        """The window that a handle stands for.

        Raises:
            ValueError: the model has made another mask of it.
        """
        for window, handle in self._handles.items():
            if handle is mask:
                return window
        raise ValueError("the model changes its masks: its forwards cannot be packed")
