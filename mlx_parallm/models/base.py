"""The caches of a running batch: rows that join, leave, move and rewind alone.

mlx-lm's models take any object with mlx-lm's cache protocol
(`update_and_fetch`, `offset`, `make_mask`, ...), one per layer. Here one
BatchedCache holds all layers of all rows. Row r of a layer lies in slot r of a
preallocated buffer, and position p of that row in column p (p modulo the
capacity, where a layer looks back over a sliding window only), so that no row
ever has to be moved because of another one's length.

A forward covers a Span: a run of neighbouring rows, each with its own number of
new tokens, right-padded to one width. What padding writes lies behind the row's
length, is masked everywhere, and is overwritten by the next real token.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models import cache as mlx_cache

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.extended_mind import Cited, MemoryForward
from mlx_parallm.models.span import Row, Span

BLOCK = 64  # columns are allocated and viewed in blocks, so that shapes repeat
MAX_WIDTH = 512  # the widest forward; rings keep this much room beyond their window


def _round_up(value: int, block: int = BLOCK) -> int:
    return -(-value // block) * block


class LayerCache:
    """One layer's part of a BatchedCache."""

    place = 0  # among the batch's layers

    def __init__(self, batch: BatchedCache) -> None:
        self.batch = batch

    @property
    def span(self) -> Span:
        """The forward that is under way."""
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
        """Have this many slots, keeping the first ones."""
        raise NotImplementedError

    def clear(self, slot: int) -> None:
        """A new sequence starts in this slot."""

    def take(self, slot: int, length: int) -> list[mx.array]:
        """Copies of a slot's contents, as far as `length` tokens need them."""
        raise NotImplementedError

    def put(self, slot: int, taken: list[mx.array]) -> None:
        """Fill a slot with what `take` gave, once that is evaluated."""
        raise NotImplementedError

    def trim(self, longest: int) -> None:
        """Give back what rows of at most this many tokens do not need."""

    def drop(self) -> None:
        """Free all buffers."""
        raise NotImplementedError


class BatchedKVCache(LayerCache):
    """K and V of an attention layer: (slots, kv_heads, capacity, dim) each.

    Args:
        batch: the batch this layer belongs to.
        window: tokens that a query looks back over, itself included; None is all.
    """

    def __init__(self, batch: BatchedCache, window: int | None = None) -> None:
        super().__init__(batch)
        self.window = window
        self.keys: mx.array | None = None
        self.values: mx.array | None = None

    @property
    def ring_size(self) -> int | None:
        """Columns beyond which a windowed layer reuses its oldest ones."""
        return None if self.window is None else _round_up(self.window + MAX_WIDTH)

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
        """The attention of a forward with memories; see attention.py.

        Raises:
            AttributeError: no row of the forward has any in this layer.
        """
        memory = self.span.memory
        if memory is None or not memory.uses(self.place):
            raise AttributeError("this forward has no memories")
        return partial(memory.attend, self.place)

    def _columns(self) -> int:
        """Columns of the views: exact where all rows agree, in blocks elsewhere."""
        span = self.span
        needed = span.needed if span.uniform else _round_up(span.needed)
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
        needed = _round_up(self.span.needed)
        if self.ring_size is not None:
            needed = min(needed, self.ring_size)
        if needed <= self.capacity:
            return
        # A quarter more than asked, so that growth costs O(1) per token.
        capacity = _round_up(max(needed, self.capacity * 5 // 4))
        if self.ring_size is not None:
            capacity = min(capacity, self.ring_size)
        self.keys = _grow(self.keys, self.batch.slots, capacity, keys)
        self.values = _grow(self.values, self.batch.slots, capacity, values)

    @property
    def arrays(self) -> list[mx.array]:
        return [] if self.keys is None or self.values is None else [self.keys, self.values]

    def resize(self, slots: int) -> None:
        if self.keys is not None and self.values is not None:
            self.keys = _resize(self.keys, slots)
            self.values = _resize(self.values, slots)

    def take(self, slot: int, length: int) -> list[mx.array]:
        columns = min(_round_up(length), self.capacity)
        return [array[slot : slot + 1, :, :columns] + 0 for array in self.arrays]

    def put(self, slot: int, taken: list[mx.array]) -> None:
        for array, part in zip(self.arrays, taken, strict=True):
            array[slot : slot + 1, :, : part.shape[2]] = part

    def trim(self, longest: int) -> None:
        needed = _round_up(longest + BLOCK)
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
        needed = _round_up(length)
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
    extra = mx.zeros((slots, heads, capacity - buffer.shape[2], dim), buffer.dtype)
    return mx.concatenate([buffer, extra], axis=2)


def _resize(buffer: mx.array, slots: int) -> mx.array:
    held = buffer.shape[0]
    if slots <= held:
        return mx.contiguous(buffer[:slots])
    return mx.concatenate([buffer, mx.zeros((slots - held, *buffer.shape[1:]), buffer.dtype)])


class BatchedStateCache(LayerCache):
    """States of a recurrent layer (convolution, SSM, delta rule, ...), one per slot.

    Follows mlx-lm's ArraysCache protocol: `cache[i]`, `lengths`, `advance`.
    A state that was never written is None to the model, as mlx-lm has it; for a
    new row among older ones it is zeros, which mlx-lm's models take as the same
    (see adapt_recurrent.py for the one that does not).
    """

    def __init__(self, batch: BatchedCache, size: int) -> None:
        super().__init__(batch)
        self.states: list[mx.array | None] = [None] * size

    def __getitem__(self, index: int) -> mx.array | None:
        state, span = self.states[index], self.span
        return None if state is None else state[span.start : span.stop]

    def __setitem__(self, index: int, value: mx.array) -> None:
        span, slots = self.span, self.batch.slots
        if span.start == 0 and span.stop == slots:
            self.states[index] = value
            return
        state = self.states[index]
        if state is None:
            state = mx.zeros((slots, *value.shape[1:]), value.dtype)
        state[span.start : span.stop] = value
        self.states[index] = state

    @property
    def cache(self) -> list[mx.array | None]:
        """The span's states."""
        return [self[i] for i in range(len(self.states))]

    @property
    def lengths(self) -> mx.array | None:
        """(B,) real tokens per row, where some row is padded."""
        return self.span.counts_array() if self.span.ragged else None

    @property
    def left_padding(self) -> None:
        """Rows are never padded on the left."""
        return None

    def advance(self, n: int) -> None:
        """Nothing to count: the batch knows every row's length."""

    def make_mask(self, N: int, **_: Any) -> mx.array | None:
        """(B, T) bool where some row is padded."""
        return self.span.token_mask() if self.span.ragged else None

    @property
    def arrays(self) -> list[mx.array]:
        return [state for state in self.states if state is not None]

    def resize(self, slots: int) -> None:
        self.states = [None if s is None else _resize(s, slots) for s in self.states]

    def clear(self, slot: int) -> None:
        for state in self.arrays:
            state[slot : slot + 1] = mx.zeros((1, *state.shape[1:]), state.dtype)

    def take(self, slot: int, length: int) -> list[mx.array]:
        return [state[slot : slot + 1] + 0 for state in self.arrays]

    def put(self, slot: int, taken: list[mx.array]) -> None:
        for state, part in zip(self.arrays, taken, strict=True):
            state[slot : slot + 1] = part

    def drop(self) -> None:
        self.states = [None] * len(self.states)

    def snapshot(self, slot: int) -> list[mx.array | None]:
        """One slot's states, (1, ...) each, safe from later writes."""
        return [None if s is None else s[slot : slot + 1] + 0 for s in self.states]

    def restore(self, slot: int, snapshot: Items[mx.array | None]) -> None:
        """Put a snapshot back into a slot."""
        for index, saved in enumerate(snapshot):
            if saved is None:
                continue
            state = self.states[index]
            if state is None:
                state = mx.zeros((self.batch.slots, *saved.shape[1:]), saved.dtype)
            state[slot : slot + 1] = saved
            self.states[index] = state


class BatchedCacheList(LayerCache):
    """Several caches of one layer (hybrid blocks, sparse attention indexers)."""

    def __init__(self, batch: BatchedCache, caches: Items[LayerCache]) -> None:
        super().__init__(batch)
        self.caches = tuple(caches)

    def __getitem__(self, index: int) -> LayerCache:
        return self.caches[index]

    def __iter__(self) -> Any:
        return iter(self.caches)

    @property
    def arrays(self) -> list[mx.array]:
        return [array for cache in self.caches for array in cache.arrays]

    def resize(self, slots: int) -> None:
        for cache in self.caches:
            cache.resize(slots)

    def clear(self, slot: int) -> None:
        for cache in self.caches:
            cache.clear(slot)

    def take(self, slot: int, length: int) -> list[mx.array]:
        raise TypeError("the caches of a list are taken one by one")

    def put(self, slot: int, taken: list[mx.array]) -> None:
        raise TypeError("the caches of a list are filled one by one")

    def drop(self) -> None:
        for cache in self.caches:
            cache.drop()


class BatchedCache:
    """The caches of all layers and rows of a running batch.

    Args:
        model: an mlx-lm model; its own caches say what each layer needs.

    Raises:
        ModelLoadError: a layer's cache cannot be batched correctly.
    """

    def __init__(self, model: Any) -> None:
        self.rows: list[Row] = []
        self.slots = 0
        self._span: Span | None = None
        self.layers = [_batched(self, cache) for cache in mlx_cache.make_prompt_cache(model)]
        for place, layer in enumerate(self.layers):
            layer.place = place

    @property
    def span(self) -> Span:
        """The forward that is under way."""
        if self._span is None:
            raise RuntimeError("no forward is under way")
        return self._span

    @property
    def leaves(self) -> list[LayerCache]:
        """Every single cache, lists opened."""
        found: list[LayerCache] = []
        for layer in self.layers:
            found.extend(layer.caches if isinstance(layer, BatchedCacheList) else [layer])
        return found

    @property
    def has_state(self) -> bool:
        """Whether some layer is recurrent: such rows cannot be rewound."""
        return any(isinstance(leaf, BatchedStateCache) for leaf in self.leaves)

    @property
    def arrays(self) -> list[mx.array]:
        """Every buffer."""
        return [array for layer in self.layers for array in layer.arrays]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(array.nbytes for array in self.arrays)

    def join(self) -> Row:
        """A new, empty row behind the others."""
        row = Row(index=len(self.rows))
        self.rows.append(row)
        if len(self.rows) > self.slots:
            self._resize(max(len(self.rows), min(2 * self.slots, self.slots + 8)))
        for layer in self.layers:
            layer.clear(row.index)
        return row

    def fork(self, row: Row) -> Row:
        """A new row with the contents of another one."""
        copy = self.join()
        copy.length, copy.shift, copy.memory = row.length, row.shift, row.memory
        self._put(copy.index, self._take(row))
        return copy

    def leave(self, row: Row) -> None:
        """Take a row out. The last one moves into its slot."""
        last = self.rows[-1]
        if row is not last:
            self._put(row.index, self._take(last))
            last.index = row.index
            self.rows[last.index] = last
        self.rows.pop()
        if not self.rows:
            self.drop()
            return
        if len(self.rows) <= self.slots // 2:
            self._resize(self.slots * 3 // 4)
        longest = max(row.length for row in self.rows)
        for leaf in self.leaves:
            leaf.trim(longest)

    def swap(self, one: Row, other: Row) -> None:
        """Exchange two rows' slots."""
        if one is other:
            return
        first, second = self._take(one), self._take(other)
        self._put(other.index, first)
        self._put(one.index, second)
        one.index, other.index = other.index, one.index
        self.rows[one.index], self.rows[other.index] = one, other

    def _take(self, row: Row) -> list[list[mx.array]]:
        """A row's contents, layer by layer.

        Evaluated at once: as long as a graph still reads from a buffer, writing to
        the buffer would copy all of it.
        """
        taken = [leaf.take(row.index, row.length) for leaf in self.leaves]
        mx.eval(taken)
        return taken

    def _put(self, slot: int, taken: list[list[mx.array]]) -> None:
        for leaf, part in zip(self.leaves, taken, strict=True):
            leaf.put(slot, part)

    def rewind(self, row: Row, count: int) -> None:
        """Forget a row's last `count` tokens. Attention layers only."""
        row.length -= count

    def begin(self, start: int, stop: int, width: int, counts: Items[int]) -> Span:
        """Open a forward over slots [start, stop) with `width` tokens a row."""
        if width > MAX_WIDTH:
            raise ValueError(f"a forward of {width} tokens a row is over {MAX_WIDTH}")
        rows = self.rows[start:stop]
        lengths = np.array([row.length for row in rows], dtype=np.int32)
        span = Span(start, stop, width, lengths, np.array(counts, dtype=np.int32))
        if any(row.memory is not None for row in rows):
            span.shifts = np.array([row.shift for row in rows], dtype=np.int32)
            working = zip(rows, span.counts, strict=True)
            span.memory = MemoryForward.of([r.memory if n else None for r, n in working])
        self._span = span
        return span

    def cited(self) -> list[Cited]:
        """Memories that the forward under way used, for rows that asked."""
        return [] if self.span.memory is None else self.span.memory.cited()

    def commit(self) -> None:
        """Close the forward: its real tokens now belong to their rows."""
        span = self.span
        for row, count in zip(self.rows[span.start : span.stop], span.counts, strict=True):
            row.length += int(count)
        self._span = None

    def drop(self) -> None:
        """Free all buffers; no row may be held."""
        self.slots = 0
        for layer in self.layers:
            layer.drop()

    def _resize(self, slots: int) -> None:
        self.slots = slots
        for layer in self.layers:
            layer.resize(slots)


def _batched(batch: BatchedCache, cache: Any) -> LayerCache:
    """Our counterpart of one of mlx-lm's single-sequence caches."""
    kind = type(cache)
    if kind is mlx_cache.KVCache:
        return BatchedKVCache(batch)
    if kind is mlx_cache.RotatingKVCache and cache.keep == 0:
        return BatchedKVCache(batch, window=cache.max_size)
    if kind is mlx_cache.ArraysCache:
        return BatchedStateCache(batch, len(cache.cache))
    if kind is mlx_cache.CacheList:
        return BatchedCacheList(batch, [_batched(batch, inner) for inner in cache.caches])
    raise ModelLoadError(f"a layer's cache ({kind.__name__}) cannot be batched")
