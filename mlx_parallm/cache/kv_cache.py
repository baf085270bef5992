"""BatchedKVCache: K and V of an attention layer, a row a slot."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import mlx.core as mx

from mlx_parallm.cache.layer_cache import (
    BLOCK,
    MAX_WIDTH,
    Batch,
    LayerCache,
    enlarged,
    resized,
    round_up,
)
from mlx_parallm.cache.packed_attention import attend_packed


class BatchedKVCache(LayerCache):
    """K and V of an attention layer: (slots, kv_heads, capacity, dim) each.

    Args:
        batch: the batch this layer belongs to.
        window: tokens that a query looks back over, itself included; None is all.
    """

    def __init__(self, batch: Batch, window: int | None = None) -> None:
        super().__init__(batch)
        self.window = window
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def ring_size(self) -> int | None:
        """Columns beyond which a windowed layer reuses its oldest ones."""
        return None if self.window is None else round_up(self.window + MAX_WIDTH)

    @property
    def capacity(self) -> int:
        """Columns allocated."""
        return 0 if self.keys is None else self.keys.shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write the span's new K and V, and return all of its rows.

        Args:
            keys, values: (B, kv_heads, T, dim), rotated where the model rotates.

        Returns:
            (B, kv_heads, columns, dim) views; `make_mask` says which columns count.
        """
        self._reserve(keys, values)
        self.keys, old = None, self.keys
        self.keys = self._write(old, keys)
        del old
        self.values, old = None, self.values
        self.values = self._write(old, values)
        del old
        return self._view(self.keys), self._view(self.values)

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What the last update_and_fetch returned (layers that share K and V)."""
        return self._view(self.keys), self._view(self.values)

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """mlx-lm's mask protocol: None, "causal" or (B, 1, T, columns) bool."""
        span = self.span
        window = window_size or self.window
        if window is not None and span.needed <= window:
            window = None
        if span.uniform and window is None and not return_array:
            return None if N == 1 else "causal"
        columns = self._columns()
        ring = self.ring_size is not None and columns == self.ring_size
        return span.mask(columns, ring, window)

    @property
    def attend(self) -> Callable[..., mx.array]:
        """The attention of a forward that is packed or has memories; see attention.py.

        Raises:
            AttributeError: it is neither, in this layer.
        """
        span, memories = self.span, None
        if span.memory is not None and span.memory.uses(self.place):
            memories = partial(span.memory.attend, self.place)
        if span.packed:
            return partial(attend_packed, span=span, memories=memories)
        if memories is None:
            raise AttributeError("attention as usual")
        return memories

    def _columns(self) -> int:
        """Columns of the views: exact where all rows agree, in blocks elsewhere."""
        span = self.span
        needed = span.needed if span.uniform else round_up(span.needed)
        return needed if self.ring_size is None else min(needed, self.ring_size)

    def _view(self, buffer: mx.array | None) -> mx.array:
        assert buffer is not None
        return buffer[self.span.start : self.span.stop, :, : self._columns()]

    def _write(self, buffer: mx.array | None, new: mx.array) -> mx.array:
        assert buffer is not None
        span, first = self.span, int(self.span.lengths[0])
        slots, heads, capacity, dim = buffer.shape
        if span.uniform and first + span.width <= capacity:
            buffer[span.start : span.stop, :, first : first + span.width] = new
            return buffer
        flat = buffer.reshape(-1, dim)
        del buffer  # so that the scatter writes in place
        flat[span.scatter_index(heads, capacity)] = new.reshape(-1, dim)
        return flat.reshape(slots, heads, capacity, dim)

    def _reserve(self, keys: mx.array, values: mx.array) -> None:
        needed = self._at_most(round_up(self.span.needed))
        if needed <= self.capacity:
            return
        capacity = max(needed, self._ahead(self.batch.expected))
        self.keys = _grow(self.keys, self.batch.slots, capacity, keys)
        self.values = _grow(self.values, self.batch.slots, capacity, values)

    def grow_ahead(self, wanted: int) -> bool:
        if self.keys is None or self.values is None or wanted <= self.capacity:
            return False
        capacity = self._ahead(wanted)
        if capacity <= self.capacity:
            return False
        self.keys = _grow(self.keys, self.batch.slots, capacity, self.keys)
        self.values = _grow(self.values, self.batch.slots, capacity, self.values)
        return True

    def _ahead(self, wanted: int) -> int:
        """Columns to have next: by an eighth more, so that growth costs O(1) per token, and
        doubled at most, so that one step does not wait for all that a long prompt needs."""
        most = 2 * self.capacity if self.capacity else wanted
        eighth = self.capacity * 9 // 8 // BLOCK * BLOCK
        return self._at_most(max(round_up(min(wanted, most)), eighth))

    def _at_most(self, columns: int) -> int:
        return columns if self.ring_size is None else min(columns, self.ring_size)

    @property
    def arrays(self) -> list[mx.array]:
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    def resize(self, slots: int) -> None:
        if self.keys is not None and self.values is not None:
            self.keys = resized(self.keys, slots)
            self.values = resized(self.values, slots)

    def take(self, slot: int, length: int) -> list[mx.array]:
        columns = min(round_up(length), self.capacity)
        return [array[slot : slot + 1, :, :columns] + 0 for array in self.arrays]

    def put(self, slot: int, taken: list[mx.array]) -> None:
        for array, part in zip(self.arrays, taken, strict=True):
            array[slot : slot + 1, :, : part.shape[2]] = part

    def trim(self, longest: int) -> None:
        needed = round_up(longest + BLOCK)
        if self.keys is None or self.values is None or needed > self.capacity // 2:
            return
        self.keys = mx.contiguous(self.keys[:, :, :needed])
        self.values = mx.contiguous(self.values[:, :, :needed])

    def drop(self) -> None:
        self.keys = self.values = None

    def read(self, slot: int, start: int, stop: int) -> tuple[mx.array, mx.array]:
        """K and V of positions [start, stop) of one slot: (kv_heads, n, dim) each."""
        assert self.keys is not None and self.values is not None
        if stop <= self.capacity:
            return self.keys[slot, :, start:stop], self.values[slot, :, start:stop]
        columns = mx.arange(start, stop) % self.capacity
        return self.keys[slot][:, columns], self.values[slot][:, columns]

    def write(self, slot: int, keys: mx.array, values: mx.array) -> None:
        """Fill one slot from position 0 on with K and V, (kv_heads, n, dim) each."""
        length = keys.shape[1]
        needed = round_up(length)
        if self.ring_size is not None:
            needed = min(needed, self.ring_size)
        if self.capacity < needed:
            self.keys = _grow(self.keys, self.batch.slots, needed, keys[None])
            self.values = _grow(self.values, self.batch.slots, needed, values[None])
        assert self.keys is not None and self.values is not None
        if length <= self.capacity:
            self.keys[slot, :, :length] = keys
            self.values[slot, :, :length] = values
            return
        first = length - self.capacity  # a ring keeps the newest
        columns = mx.arange(first, length) % self.capacity
        order = mx.argsort(columns) + first
        self.keys[slot] = keys[:, order]
        self.values[slot] = values[:, order]


def _grow(buffer: mx.array | None, slots: int, capacity: int, like: mx.array) -> mx.array:
    """A (slots, heads, capacity, dim) buffer with the old one's contents."""
    _, heads, _, dim = like.shape
    if buffer is None:
        return mx.zeros((slots, heads, capacity, dim), like.dtype)
    return enlarged(buffer, (slots, heads, capacity, dim))
