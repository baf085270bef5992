"""The Routing: which adapter each token of the forward under way belongs to.

Whether a forward is padded (rows by tokens) or packed (tokens by 1), a token's adapter is
found along the first axis of what a layer is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import mlx.core as mx
import numpy as np

_MOST_PADDING = 2  # times the tokens that a grid of them may be


class Lanes:
    """The adapters' slots along the first axis of a forward.

    Args:
        slots: (N,) one for each row or token; 0 has no adapter.
    """

    def __init__(self, slots: np.ndarray) -> None:
        self.host = slots
        self.active = frozenset(np.unique(slots).tolist()) - {0}

    @cached_property
    def index(self) -> mx.array:
        """(N,) int32."""
        return mx.array(self.host.astype(np.int32))

    @cached_property
    def only(self) -> int | None:
        """The slot of all of them, where that is one."""
        first = int(self.host[0])
        return first if (self.host == first).all() else None

    def of_tokens(self, tokens: int) -> mx.array:
        """(tokens,) int32: those of each lane lie behind each other."""
        return mx.repeat(self.index, tokens // len(self.host))

    def mask(self, slot: int, tokens: int) -> mx.array:
        """(tokens,) bool: which belong to a slot."""
        return self.of_tokens(tokens) == slot

    @cached_property
    def grid(self) -> Grid | None:
        """Tokens beside each other by adapter; None where that were mostly padding."""
        return Grid.of(self.host)


class Grid:
    """Tokens of one adapter in one line, (G, R), so that one product serves a line.

    Attributes:
        tokens: (G, R) int32, which token; what fills a line is any.
        slots: (G,) int32.
        back: (N,) int32, where in the grid a token is; G * R where it has no adapter.
        all_adapted: whether none is there.
    """

    def __init__(self, tokens: np.ndarray, slots: np.ndarray, back: np.ndarray) -> None:
        self.tokens = mx.array(tokens.astype(np.int32))
        self.slots = mx.array(slots.astype(np.int32))
        self.back = mx.array(back.astype(np.int32))
        self.all_adapted = bool((back < tokens.size).all())

    @classmethod
    def of(cls, host: np.ndarray) -> Grid | None:
        """The grid of these slots, (N,)."""
        order = np.argsort(host, kind="stable")
        order = order[host[order] > 0]
        slots, firsts, counts = np.unique(host[order], return_index=True, return_counts=True)
        width = int(counts.max())
        if len(slots) * width > _MOST_PADDING * len(order) + 8:
            return None
        places = np.minimum(np.arange(width)[None], counts[:, None] - 1)
        tokens = order[firsts[:, None] + places]
        back = np.full(len(host), tokens.size)
        line = np.repeat(np.arange(len(slots)), counts)
        back[order] = line * width + np.arange(len(order)) - firsts[line]
        return cls(tokens, slots, back)


class Routing:
    """The lanes of the forward that is under way; None where no row has an adapter."""

    def __init__(self) -> None:
        self.lanes: Lanes | None = None
        self.sorted_slots: mx.array | None = None

    @contextmanager
    def over(self, slots: np.ndarray | None) -> Iterator[None]:
        """Compute a forward whose first axis belongs to these slots, (N,)."""
        self.lanes = None if slots is None or not slots.any() else Lanes(slots)
        try:
            yield
        finally:
            self.lanes = None

    def narrow(self, wanted: np.ndarray) -> None:
        """The rest of the forward is about these places, (M,), of its first axis."""
        if self.lanes is not None:
            slots = self.lanes.host[wanted]
            self.lanes = Lanes(slots) if slots.any() else None

    @contextmanager
    def sorted_by(self, experts: mx.array) -> Iterator[None]:
        """Tokens are sorted by their experts, (..., experts of each token), as mlx-lm does it."""
        assert self.lanes is not None
        each = experts.shape[-1]
        tokens = mx.argsort(experts.flatten()) // each
        self.sorted_slots = self.lanes.of_tokens(experts.size // each)[tokens]
        try:
            yield
        finally:
            self.sorted_slots = None
