"""BatchedKVCache: K and V of an attention layer, a row a slot."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.layer_cache import (
    BLOCK,
    MAX_WIDTH,
    Batch,
    LayerCache,
    enlarged,
    resized,
    round_up,
)
from mlx_parallm.cache.span import Span


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
        self._reserve(self.span, keys, values)
        self.keys, old = None, self.keys
        self.keys = self._write(old, keys)
        del old
        self.values, old = None, self.values
        self.values = self._write(old, values)
        del old
        return self.views(self.span)

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """What the last update_and_fetch returned (layers that share K and V)."""
        return self.views(self.span)

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array | str | None:
        """mlx-lm's mask protocol: None, "causal" or (B, 1, T, columns) bool."""
        return self.mask_of(self.span, window_size or self.window, as_array=return_array)

    def mask_of(
        self,
        span: Span,
        window: int | None,
        *,
        as_array: bool = False,
        dtype: mx.Dtype | None = None,
    ) -> mx.array | str | None:
        """What the span's tokens may attend to: None, "causal" or (B, 1, T, columns).

        dtype: of a mask to be added to scores; None makes a bool one.
        """
        blocks = span.blocks_of(window)
        bounds_blocks = span.narrow and blocks is not None
        if window is not None and span.needed <= window and not bounds_blocks:
            window = None
        if span.uniform and window is None and not as_array and blocks is None:
            return None if span.width == 1 else "causal"
        columns = self._columns(span)
        ring = self.ring_size is not None and columns == self.ring_size
        if dtype is not None:
            return span.additive_mask(columns, ring, window, dtype)
        return span.mask(columns, ring, window)

    @property
    def attend(self) -> Callable[..., mx.array]:
        """The attention of a forward with memories; see models/attention.py.

        Raises:
            AttributeError: this layer has none.
        """
        memory = self.span.memory
        if memory is None or not memory.uses(self.place):
            raise AttributeError("attention as usual")

        def attend(
            queries: mx.array, keys: mx.array, values: mx.array, *, compute: Any, **how: Any
        ) -> mx.array:
            plain = partial(compute, queries, keys, values, **how)
            attended: mx.array = memory.attend(
                self.place, queries, keys, values, plain=plain, **how
            )
            return attended

        return attend

    def _columns(self, span: Span) -> int:
        """Columns of the views: exact where all rows agree, in blocks elsewhere."""
        needed = span.needed if span.uniform else round_up(span.needed, view_block())
        # The longest row and the widest chunk need not be the same row's: together they may
        # be more than any row of a length class has.
        return min(n for n in (needed, self.ring_size, self.batch.capacity) if n is not None)

    def views(self, span: Span) -> tuple[mx.array, mx.array]:
        """K and V of the span's rows: (B, kv_heads, columns, dim) each."""
        assert self.keys is not None and self.values is not None
        rows, columns = slice(span.start, span.stop), self._columns(span)
        return self.keys[rows, :, :columns], self.values[rows, :, :columns]

    def write_tokens(self, span: Span, keys: mx.array, values: mx.array) -> None:
        """Write the span's N real tokens, (N, kv_heads, 1, dim) each, token by token."""
        self._reserve(span, keys, values)
        self.keys, old = None, self.keys
        self.keys = self._write_tokens(span, old, keys)
        del old
        self.values, old = None, self.values
        self.values = self._write_tokens(span, old, values)

    def _write_tokens(self, span: Span, buffer: mx.array | None, new: mx.array) -> mx.array:
        assert buffer is not None
        first, (slots, heads, capacity, dim) = int(span.lengths[0]), buffer.shape
        if span.size == 1 and first + span.width <= capacity:
            columns = slice(first, first + span.width)
            buffer[span.start, :, columns] = new[:, :, 0].swapaxes(0, 1)
            return buffer
        flat = buffer.reshape(-1, dim)
        del buffer  # in place: nothing else may refer to the buffer
        flat[span.token_scatter_index(heads, capacity)] = new.reshape(-1, dim)
        return flat.reshape(slots, heads, capacity, dim)

    def _write(self, buffer: mx.array | None, new: mx.array) -> mx.array:
        assert buffer is not None
        span, first = self.span, int(self.span.lengths[0])
        slots, heads, capacity, dim = buffer.shape
        if span.uniform and first + span.width <= capacity:
            buffer[span.start : span.stop, :, first : first + span.width] = new
            return buffer
        flat = buffer.reshape(-1, dim)
        del buffer  # in place: nothing else may refer to the buffer
        flat[span.scatter_index(heads, capacity)] = new.reshape(-1, dim)
        return flat.reshape(slots, heads, capacity, dim)

    def _reserve(self, span: Span, keys: mx.array, values: mx.array) -> None:
        needed = self._at_most(round_up(span.needed))
        if needed <= self.capacity:
            return
        self._allocate(max(needed, self._ahead(self.batch.expected)), keys, values)

    def _allocate(self, capacity: int, keys: mx.array, values: mx.array) -> None:
        """Have so many columns, of the shape and type of these."""
        self.keys = _grow(self.keys, self.batch.slots, capacity, keys)
        self.values = _grow(self.values, self.batch.slots, capacity, values)

    def grow_ahead(self, wanted: int) -> bool:
        if self.keys is None or self.values is None or wanted <= self.capacity:
            return False
        capacity = self._ahead(wanted)
        if capacity <= self.capacity:
            return False
        self._allocate(capacity, self.keys, self.values)
        return True

    def _ahead(self, wanted: int) -> int:
        """Columns after the next growth: an eighth more, so that growth costs O(1) per token,
        and twice as many at most, so that no step waits for all that a long prompt needs."""
        most = 2 * self.capacity if self.capacity else wanted
        eighth = self.capacity * 9 // 8 // BLOCK * BLOCK
        return self._at_most(max(round_up(min(wanted, most)), eighth))

    def _at_most(self, columns: int) -> int:
        """The columns to have: those of the row's class, or so many; no more than a ring."""
        columns = self.batch.capacity or columns
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
        if taken and taken[0].shape[2] > self.capacity:  # longer than all rows that are here
            self._allocate(self._at_most(taken[0].shape[2]), *taken)
        for array, part in zip(self.arrays, taken, strict=True):
            array[slot : slot + 1, :, : part.shape[2]] = part

    def trim(self, longest: int) -> None:
        needed = round_up(longest + BLOCK)
        if self.keys is None or self.values is None or needed > self.capacity // 2:
            return
        self.keys = mx.contiguous(self.keys[:, :, :needed])
        self.values = mx.contiguous(self.values[:, :, :needed])

    def scrub(self, lengths: np.ndarray) -> None:
        if self.keys is None or self.values is None:
            return
        held = mx.arange(self.capacity)[None] < mx.array(lengths)[:, None]
        held = held[:, None, :, None]
        self.keys = mx.where(held, self.keys, mx.zeros((), self.keys.dtype))
        self.values = mx.where(held, self.values, mx.zeros((), self.values.dtype))
        mx.eval(self.keys, self.values)  # or later writes would copy them

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
        needed = self._at_most(round_up(length))
        if self.capacity < needed:
            self._allocate(needed, keys[None], values[None])
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


@lru_cache(maxsize=1)
def view_block() -> int:
    """Columns by which views grow: a GPU's kernels are made for each shape, a CPU reads less."""
    return 16 if mx.default_device().type == mx.DeviceType.cpu else BLOCK


def _grow(buffer: mx.array | None, slots: int, capacity: int, like: mx.array) -> mx.array:
    """A (slots, heads, capacity, dim) buffer with the old one's contents."""
    _, heads, _, dim = like.shape
    if buffer is None:
        return mx.zeros((slots, heads, capacity, dim), like.dtype)
    return enlarged(buffer, (slots, heads, capacity, dim))
