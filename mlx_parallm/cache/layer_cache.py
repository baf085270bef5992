"""What all layers' caches of a batch have in common."""

from __future__ import annotations

from typing import Protocol

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.length_class import BLOCK
from mlx_parallm.cache.span import Span
from mlx_parallm.models.limits import MAX_WIDTH

__all__ = ["BLOCK", "MAX_WIDTH", "LayerCache", "enlarged", "resized", "round_up"]


def round_up(value: int, block: int = BLOCK) -> int:
    """The next multiple of the block."""
    return -(-value // block) * block


class Batch(Protocol):
    """What a layer's cache sees of the whole batch; see BatchedCache."""

    slots: int
    capacity: int | None

    @property
    def span(self) -> Span:
        """The current forward."""

    @property
    def expected(self) -> int:
        """Tokens that the longest row will have."""


class LayerCache:
    """One layer's part of a BatchedCache."""

    place = 0  # among the batch's layers

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    @property
    def span(self) -> Span:
        """The current forward."""
        return self.batch.span

    @property
    def offset(self) -> mx.array:
        """(B,) int32, per-row positions, as mlx-lm's rotary embeddings take them."""
        return self.span.offsets()

    def size(self) -> int:
        """Tokens held by the longest row."""
        return int(self.span.lengths.max())

    def empty(self) -> bool:
        """Whether nothing was computed yet."""
        return self.size() == 0

    def is_trimmable(self) -> bool:
        """mlx-lm's trim is for single sequences; rows rewind through BatchedCache."""
        return False

    @property
    def arrays(self) -> list[mx.array]:
        """All buffers, for evaluation and accounting."""
        raise NotImplementedError

    def resize(self, slots: int) -> None:
        """Change the number of slots; the first ones keep their contents."""
        raise NotImplementedError

    def clear(self, slot: int) -> None:
        """A new sequence starts in this slot."""

    def take(self, slot: int, length: int) -> list[mx.array]:
        """Copies of a slot's contents, as far as `length` tokens need them."""
        raise NotImplementedError

    def put(self, slot: int, taken: list[mx.array]) -> None:
        """Fill a slot with what `take` gave, once that is evaluated."""
        raise NotImplementedError

    def grow_ahead(self, wanted: int) -> bool:
        """Grow ahead of time to `wanted` tokens a row. False where there was room already."""
        return False

    def trim(self, longest: int) -> None:
        """Shrink to what rows of at most this many tokens need."""

    def scrub(self, lengths: np.ndarray) -> None:
        """Write zeros behind each slot's first tokens; lengths (slots,)."""

    def drop(self) -> None:
        """Free all buffers."""
        raise NotImplementedError


def resized(buffer: mx.array, slots: int) -> mx.array:
    """The buffer with another number of slots; the first ones keep their contents."""
    held = buffer.shape[0]
    if slots <= held:
        return mx.contiguous(buffer[:slots])
    return enlarged(buffer, (slots, *buffer.shape[1:]))


def enlarged(buffer: mx.array, shape: tuple[int, ...]) -> mx.array:
    """The buffer's contents in a corner of a larger one, zeros elsewhere."""
    grown = mx.zeros(shape, buffer.dtype)
    grown[tuple(slice(size) for size in buffer.shape)] = buffer
    # Evaluated now: a later write would copy all of it, and keep the old buffer alive.
    mx.eval(grown)
    return grown
