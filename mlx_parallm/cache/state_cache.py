"""Caches of recurrent layers, and of layers that consist of several caches."""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.layer_cache import Batch, LayerCache, resized


class BatchedStateCache(LayerCache):
    """States of a recurrent layer (convolution, SSM, delta rule, ...), one per slot.

    Follows mlx-lm's ArraysCache protocol: `cache[i]`, `lengths`, `advance`.
    A state that was never written is None to the model, as mlx-lm has it; for a
    new row among older ones it is zeros, which mlx-lm's models take as the same
    (see adapt_recurrent.py for the one that does not).
    """

    def __init__(self, batch: Batch, size: int) -> None:
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
        self.states = [None if s is None else resized(s, slots) for s in self.states]

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

    def __init__(self, batch: Batch, caches: Items[LayerCache]) -> None:
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

    def scrub(self, lengths: np.ndarray) -> None:
        for cache in self.caches:
            cache.scrub(lengths)

    def drop(self) -> None:
        for cache in self.caches:
            cache.drop()
