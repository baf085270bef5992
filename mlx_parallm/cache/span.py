"""Rows of a running batch, and the Span of them that one forward covers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import mlx.core as mx
import numpy as np


@dataclass(eq=False, slots=True)
class Row:
    """One sequence's place in the batch.

    Attributes:
        index: its slot now; the cache keeps it up to date.
        length: tokens whose K and V (or state) are held.
        expected: tokens that it may come to hold, as far as that is known.
        shift: added to its tokens' positions; columns and masks stay on `length`.
        memory: what it attends to besides its own tokens (a MemoryRequest).
        adapter: the slot of the adapter that its tokens are computed with; 0 is none.
        home: the batch of rows that it lies in (a BatchedCache).
    """

    index: int
    length: int = 0
    expected: int = 0
    shift: int = 0
    memory: Any = None
    adapter: int = 0
    home: Any = None


class Ragged:
    """Rows with different numbers of tokens, laid out one after the other.

    Args:
        counts: (B,) tokens of each row, N in all.

    Attributes:
        firsts: (B,) where each row begins.
        rows, places: (N,) the row of each token, and how many of that row's are before it.
    """

    def __init__(self, counts: np.ndarray) -> None:
        self.firsts: np.ndarray = np.cumsum(counts) - counts
        self.rows: np.ndarray = np.repeat(np.arange(len(counts)), counts)
        self.places: np.ndarray = np.arange(len(self.rows)) - self.firsts[self.rows]


@dataclass(eq=False)
class Span:
    """The rows and new tokens of one forward.

    Attributes:
        start, stop: slots [start, stop) take part.
        width: T, tokens per row after padding.
        lengths: (B,) int32, tokens held before this forward.
        counts: (B,) int32, real new tokens per row, at most T.
        shifts: (B,) int32, added to positions; None is 0.
        memory: the memories that its rows attend to (a MemoryForward).
        adapters: (B,) the rows' slots of adapters; None where none has one.
        blocks: (B, T, 2) int32, positions [first, stop) that each new token sees whatever their
            order, as within a picture; None where there are none.
        narrow: only layers with a window see blocks so, and no farther back than the window.
    """

    start: int
    stop: int
    width: int
    lengths: np.ndarray
    counts: np.ndarray
    shifts: np.ndarray | None = None
    memory: Any = None
    adapters: np.ndarray | None = None
    blocks: np.ndarray | None = None
    narrow: bool = False
    _arrays: dict[tuple[Any, ...], mx.array] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """B, the number of rows."""
        return self.stop - self.start

    @cached_property
    def needed(self) -> int:
        """Columns that a cache without a window must have."""
        return int(self.lengths.max()) + self.width

    @cached_property
    def uniform(self) -> bool:
        """Whether every row writes to the same columns, in one piece and without padding."""
        same = (self.lengths == self.lengths[0]).all()
        return bool(same and not self.ragged)

    @cached_property
    def ragged(self) -> bool:
        """Whether some row has padding."""
        return bool((self.counts != self.width).any())

    @cached_property
    def layout(self) -> Ragged:
        """Where the N real tokens belong."""
        return Ragged(self.counts)

    def grid_index(self) -> mx.array:
        """(B * T,) the token of each place in the grid; padding has one of its neighbours."""
        return self._memo(("grid",), self._grid_index)

    def _grid_index(self) -> mx.array:
        places = np.minimum(np.arange(self.width)[None], np.maximum(self.counts - 1, 0)[:, None])
        index = np.minimum(self.layout.firsts[:, None] + places, len(self.layout.rows) - 1)
        return mx.array(index.reshape(-1).astype(np.int32))

    def pack_index(self) -> mx.array:
        """(N,) the place in the grid of each real token."""
        return self._memo(
            ("pack",),
            lambda: mx.array((self.layout.rows * self.width + self.layout.places).astype(np.int32)),
        )

    def offsets(self) -> mx.array:
        """(B,) int32, the position of each row's first new token."""
        return self._memo(("offsets",), lambda: mx.array(self.first_positions))

    @property
    def first_positions(self) -> np.ndarray:
        """(B,) the position of each row's first new token."""
        return self.lengths if self.shifts is None else self.lengths + self.shifts

    def positions(self) -> np.ndarray:
        """(N,) int32, the position of each real token."""
        return np.asarray(
            self.first_positions[self.layout.rows] + self.layout.places, dtype=np.int32
        )

    def counts_array(self) -> mx.array:
        """(B,) int32, real new tokens per row."""
        return self._memo(("counts",), lambda: mx.array(self.counts))

    def token_mask(self) -> mx.array:
        """(B, T) bool, true for real tokens."""
        return self._memo(
            ("tokens",),
            lambda: mx.array(np.arange(self.width)[None] < self.counts[:, None]),
        )

    def scatter_index(self, heads: int, capacity: int) -> mx.array:
        """(B * heads * T,) int32: where new tokens go in a (slots*heads*capacity, D) buffer."""
        return self._memo(
            ("scatter", heads, capacity), lambda: self._scatter_index(heads, capacity)
        )

    def _scatter_index(self, heads: int, capacity: int) -> mx.array:
        slots = np.arange(self.start, self.stop)[:, None, None]
        columns = (self.lengths[:, None] + np.arange(self.width)[None]) % capacity
        index = (slots * heads + np.arange(heads)[None, :, None]) * capacity + columns[:, None]
        return mx.array(index.reshape(-1).astype(np.int32))

    def token_scatter_index(self, heads: int, capacity: int) -> mx.array:
        """(N * heads,) int32: the same for the real tokens only, token by token."""
        return self._memo(
            ("tokens", heads, capacity), lambda: self._token_scatter_index(heads, capacity)
        )

    def _token_scatter_index(self, heads: int, capacity: int) -> mx.array:
        rows, places = self.layout.rows, self.layout.places
        columns = (self.lengths[rows] + places) % capacity
        rows = (rows + self.start)[:, None] * heads + np.arange(heads)[None]
        return mx.array((rows * capacity + columns[:, None]).reshape(-1).astype(np.int32))

    def blocks_of(self, window: int | None) -> np.ndarray | None:
        """Those that a layer with this window sees, or without one."""
        return None if self.narrow and window is None else self.blocks

    def mask(self, columns: int, ring: bool, window: int | None) -> mx.array:
        """(B, 1, T, columns) bool: which columns each new token may attend to."""
        return self._memo(
            ("mask", columns, ring, window),
            lambda: mx.array(self._visible(np, columns, ring, window)),
        )

    def additive_mask(
        self, columns: int, ring: bool, window: int | None, dtype: mx.Dtype
    ) -> mx.array:
        """The same to be added to scores, made on the device: once a step, and not in each
        layer."""

        def make() -> mx.array:
            visible = self._visible(mx, columns, ring, window)
            return mx.where(visible, 0.0, mx.finfo(dtype).min).astype(dtype)

        return self._memo(("additive", columns, ring, window, dtype), make)

    def _visible(self, xp: Any, columns: int, ring: bool, window: int | None) -> Any:
        lengths, blocks = xp.array(self.lengths), self.blocks_of(window)
        blocks = None if blocks is None else xp.array(blocks)
        return allowed(xp, lengths, self.width, columns, ring, window, blocks, narrow=self.narrow)

    def _memo(self, key: tuple[Any, ...], make: Callable[[], mx.array]) -> mx.array:
        if key not in self._arrays:
            self._arrays[key] = make()
        return self._arrays[key]


def allowed(
    xp: Any,
    lengths: Any,
    width: int,
    columns: int,
    ring: bool,
    window: int | None,
    blocks: Any = None,
    *,
    narrow: bool = False,
) -> Any:
    """(B, 1, T, columns) bool: which columns each new token may attend to.

    Args:
        xp: numpy or mlx.core, which computes it.
        lengths: (B,) tokens held before.
        ring: position p is in column p modulo `columns`.
        blocks, narrow: see Span.
    """
    query = lengths[:, None] + xp.arange(width)[None]  # (B, T)
    position = xp.arange(columns)[None]
    if ring:
        # The newest position that was written to each column.
        newest = (lengths + width - 1)[:, None]
        position = newest - (newest - position) % columns  # (B, columns)
    position = position[:, None]
    visible = (position >= 0) & (position <= query[..., None])
    near = True if window is None else position > query[..., None] - window
    if blocks is None:
        return (visible & near)[:, None]
    inside = (position >= blocks[..., :1]) & (position < blocks[..., 1:])
    visible = (visible | inside) & near if narrow else visible & near | inside
    return visible[:, None]
