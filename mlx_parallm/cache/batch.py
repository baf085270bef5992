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

from collections.abc import Sequence as Items
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models import cache as mlx_cache

from mlx_parallm.cache.extended_mind import Cited, MemoryForward
from mlx_parallm.cache.kv_cache import BatchedKVCache
from mlx_parallm.cache.layer_cache import BLOCK, MAX_WIDTH, LayerCache
from mlx_parallm.cache.length_class import slots_for
from mlx_parallm.cache.span import Row, Span
from mlx_parallm.cache.state_cache import BatchedCacheList, BatchedStateCache
from mlx_parallm.errors import ModelLoadError

_LONG = 1024  # tokens; shorter buffers are so quick to grow that it need not be spread over steps
_GROWING_STEPS = 32  # all layers have grown after so many steps, before a block of columns is full

__all__ = [
    "BLOCK",
    "MAX_WIDTH",
    "BatchedCache",
    "BatchedCacheList",
    "BatchedKVCache",
    "BatchedStateCache",
    "LayerCache",
    "Row",
    "Span",
]


class BatchedCache:
    """The caches of all layers and rows of a running batch.

    Args:
        model: an mlx-lm model; its own caches say what each layer needs.
        capacity: columns of every row; None has as many as the longest row needs.

    Attributes:
        num_decoding: rows in the first slots that decode; those behind catch up.

    Raises:
        ModelLoadError: a layer's cache cannot be batched correctly.
    """

    def __init__(self, model: Any, capacity: int | None = None) -> None:
        self.rows: list[Row] = []
        self.slots = 0
        self.capacity = capacity
        self.num_decoding = 0
        self._span: Span | None = None
        self.layers = [_batched(self, cache) for cache in mlx_cache.make_prompt_cache(model)]
        for place, layer in enumerate(self.layers):
            layer.place = place
        self._has_state = any(isinstance(leaf, BatchedStateCache) for leaf in self.leaves)

    @property
    def span(self) -> Span:
        """The current forward."""
        if self._span is None:
            raise RuntimeError("no forward is under way")
        return self._span

    @property
    def leaves(self) -> list[LayerCache]:
        """Every layer's cache; those inside CacheLists one by one."""
        found: list[LayerCache] = []
        for layer in self.layers:
            found.extend(layer.caches if isinstance(layer, BatchedCacheList) else [layer])
        return found

    @property
    def has_state(self) -> bool:
        """Whether some layer is recurrent: such rows cannot be rewound."""
        return self._has_state

    @property
    def arrays(self) -> list[mx.array]:
        """Every buffer."""
        return [array for layer in self.layers for array in layer.arrays]

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V that one token takes in all layers; 0 for recurrent models.

        Read off the buffers after a forward, since architectures differ in what they keep.
        """
        size = 0
        for leaf in self.leaves:
            if isinstance(leaf, BatchedKVCache) and leaf.capacity:
                size += sum(array.nbytes for array in leaf.arrays) // (self.slots * leaf.capacity)
        return size

    @property
    def expected(self) -> int:
        """Tokens that the longest row will have: buffers grow to these in few steps, not with
        every chunk."""
        return max((row.expected for row in self.rows), default=0)

    def join(self) -> Row:
        """A new, empty row behind the others."""
        row = Row(index=len(self.rows), home=self)
        self.rows.append(row)
        if len(self.rows) > self.slots:
            self._resize(slots_for(len(self.rows), self.slots))
        for layer in self.layers:
            layer.clear(row.index)
        return row

    def fork(self, row: Row) -> Row:
        """A new row with the contents of another one."""
        copy = self.join()
        copy.length, copy.shift = row.length, row.shift
        copy.memory, copy.adapter = row.memory, row.adapter
        copy.expected = row.expected
        self._put(copy.index, self._take(row))
        return copy

    def leave(self, row: Row) -> None:
        """Take a row out. The last one moves into its slot."""
        row.length = 0  # or its contents would be moved with the slot
        if row.index < self.num_decoding:
            self.num_decoding -= 1
            self.swap(row, self.rows[self.num_decoding])
        last = self.rows[-1]
        if row is not last:
            self._put(row.index, self._take(last))
            last.index = row.index
            self.rows[last.index] = last
        self.rows.pop()
        if not self.rows:
            self.drop()
            return
        if (slots := slots_for(len(self.rows), self.slots)) < self.slots:
            self._resize(slots)
        if self.capacity is not None:
            return
        longest = max(self.expected, *(row.length for row in self.rows))
        for leaf in self.leaves:
            leaf.trim(longest)

    def move(self, row: Row, home: BatchedCache) -> None:
        """Move a row and what it holds to another batch of the same model, behind its rows."""
        taken, decodes = self._take(row), row.index < self.num_decoding
        copy = home.join()
        home._put(copy.index, taken)
        length = row.length
        self.leave(row)
        row.index, row.length, row.home = copy.index, length, home  # the rest stays as it is
        home.rows[row.index] = row
        if decodes:
            home.to_decoding(row)

    def to_decoding(self, row: Row) -> None:
        """Move a row that has caught up among those that decode."""
        if row.index >= self.num_decoding:
            self.swap(row, self.rows[self.num_decoding])
            self.num_decoding += 1

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
        if not row.length and not self._has_state:  # the row is leaving, or a draft's
            return []
        taken = [leaf.take(row.index, row.length) for leaf in self.leaves]
        mx.eval(taken)
        return taken

    def _put(self, slot: int, taken: list[list[mx.array]]) -> None:
        if not taken:
            return
        for leaf, part in zip(self.leaves, taken, strict=True):
            leaf.put(slot, part)

    def rewind(self, row: Row, count: int) -> None:
        """Forget a row's last `count` tokens. Attention layers only."""
        row.length -= count

    def is_finite(self, row: Row, first: int) -> bool:
        """Whether what a row holds is finite from position `first` on.

        What is NaN in one layer is so in all behind it, so the last one is looked at.
        """
        held: list[mx.array] = []
        for leaf in reversed(self.leaves):
            if isinstance(leaf, BatchedKVCache) and leaf.arrays and first < row.length:
                held = [*leaf.read(row.index, first, row.length)]
            elif isinstance(leaf, BatchedStateCache):
                held = leaf.take(row.index, row.length)
            if held:
                break
        return all(np.isfinite(np.array(array.astype(mx.float32).sum())) for array in held)

    def scrub(self) -> None:
        """Write zeros behind every row's tokens.

        What lies there is masked, and so counts 0 times; but 0 times NaN is NaN.
        """
        lengths = np.zeros(self.slots, dtype=np.int32)
        lengths[: len(self.rows)] = [row.length for row in self.rows]
        for leaf in self.leaves:
            leaf.scrub(lengths)

    def begin(self, start: int, stop: int, width: int, counts: Items[int]) -> Span:
        """Open a forward over slots [start, stop) with `width` tokens a row."""
        self._grow_ahead()
        self._span = self.over(start, stop, width, counts)
        return self._span

    def over(self, start: int, stop: int, width: int, counts: Items[int]) -> Span:
        """What a forward over these slots needs to know of them."""
        if width > MAX_WIDTH:
            raise ValueError(f"a forward of {width} tokens a row is over {MAX_WIDTH}")
        rows = self.rows[start:stop]
        lengths = np.array([row.length for row in rows], dtype=np.int32)
        span = Span(start, stop, width, lengths, np.array(counts, dtype=np.int32))
        if any(row.shift for row in rows):
            span.shifts = np.array([row.shift for row in rows], dtype=np.int32)
        if any(row.memory is not None for row in rows):
            working = zip(rows, span.counts, strict=True)
            span.memory = MemoryForward.of([r.memory if n else None for r, n in working])
        if any(row.adapter for row in rows):
            span.adapters = np.array([row.adapter for row in rows])
        return span

    def cited(self) -> list[Cited]:
        """Memories that the current forward used, for rows that asked."""
        return [] if self.span.memory is None else self.span.memory.cited()

    def commit(self) -> None:
        """Close the forward: its real tokens now belong to their rows."""
        self.computed(self.span)
        self._span = None

    def computed(self, span: Span) -> None:
        """The span's real tokens belong to their rows now."""
        for row, count in zip(self.rows[span.start : span.stop], span.counts, strict=True):
            row.length += int(count)

    def drop(self) -> None:
        """Free all buffers; no row may be held."""
        self.slots = self.num_decoding = 0
        for layer in self.layers:
            layer.drop()

    def _grow_ahead(self) -> None:
        """Grow a few layers where answers will soon fill them: all layers in one step would
        stall every row."""
        longest = max((row.length for row in self.rows if row.length >= row.expected), default=0)
        if longest < _LONG or self.capacity is not None:
            return
        wanted = longest + BLOCK
        left = -(-len(self.leaves) // _GROWING_STEPS)
        for leaf in self.leaves:
            left -= leaf.grow_ahead(wanted)
            if left == 0:
                return

    def _resize(self, slots: int) -> None:
        self.slots = slots
        for layer in self.layers:
            layer.resize(slots)


def _batched(batch: BatchedCache, cache: Any) -> LayerCache:
    """The batched counterpart of one of mlx-lm's single-sequence caches."""
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
