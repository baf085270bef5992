"""The PrefixStore: finished prefixes between the batch's rows and the pages.

The tree knows which pages hold which tokens; the pages hold K and V; recurrent
layers' states are snapshots on the tree's nodes. A hit copies pages into a row,
and a row's full pages are written back when its prompt is computed and when it
is released.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import mlx.core as mx

from mlx_parallm.cache.batch import BatchedCache, BatchedKVCache, BatchedStateCache
from mlx_parallm.cache.prefixes.page_spill import PageSpill
from mlx_parallm.cache.prefixes.page_store import PageStore
from mlx_parallm.cache.prefixes.pages import PagedKVCache, page_nbytes
from mlx_parallm.cache.prefixes.prefix_cache import PAGE_SIZE, Match, Namespace, RadixAttentionCache
from mlx_parallm.cache.row_cache import RowCache
from mlx_parallm.cache.span import Row
from mlx_parallm.models.adapting.layer_spec import LayerSpec

log = logging.getLogger(__name__)
SNAPSHOT_DISTANCE = 512  # tokens between two snapshots of a long prompt
_STATE_ONLY_PAGES = 1 << 16
_NO_RING = 1 << 40


class Held(Protocol):
    """What is asked of a sequence; see engine/sequence.py."""

    id: int

    @property
    def namespace(self) -> Namespace:
        """Everything besides the tokens that changes K and V."""

    @property
    def keys(self) -> list[int]:
        """A number for each token of prompt and output: what prefixes are found by."""

    @property
    def num_tokens(self) -> int:
        """How many there are."""


class PrefixStore:
    """Pages and tree for one model.

    Args:
        cache: the batch's caches, after a forward, so that their shapes are known.
        memory: bytes for pages and snapshots.
        agree: the smallest value of all ranks that hold the same prefixes.

    Attributes:
        page_nbytes: bytes of one page, on the rank where it is largest.
    """

    def __init__(
        self,
        cache: BatchedCache | RowCache,
        memory: int,
        agree: Callable[[int], int] = lambda value: value,
    ) -> None:
        self._agree = agree
        self._kv = [leaf for leaf in cache.leaves if isinstance(leaf, BatchedKVCache)]
        self._kv = [leaf for leaf in self._kv if leaf.keys is not None]
        self._kv_places = [cache.leaves.index(leaf) for leaf in self._kv]
        self.has_state = cache.has_state
        rings = [leaf.ring_size for leaf in self._kv if leaf.ring_size is not None]
        ring = agree(min(rings, default=_NO_RING))
        self.ring = None if ring == _NO_RING else ring
        specs = [_spec(leaf) for leaf in self._kv]
        state_bytes = -agree(-_state_bytes(cache))
        dtype = self._kv[0].arrays[0].dtype if specs else mx.float32
        self.page_nbytes = -agree(-page_nbytes(specs, PAGE_SIZE, dtype))
        if self.page_nbytes and state_bytes:
            memory //= 2  # pages and snapshots share
        num_pages = memory // self.page_nbytes if self.page_nbytes else _STATE_ONLY_PAGES
        self.pages = PagedKVCache(specs, num_pages, dtype=dtype)
        self.tree = RadixAttentionCache(
            self.pages.pool,
            PAGE_SIZE,
            storage=self.pages,
            max_snapshots=memory // state_bytes if state_bytes else 0,
        )
        self.disk: PageSpill | None = None
        self._stored: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that pages hold."""
        return self.pages.nbytes

    def keep_on_disk(self, folder: Path, fingerprint: str, max_bytes: int) -> None:
        """Spill evicted pages to a folder, and find them there after a restart."""
        store = PageStore(folder, fingerprint, max_bytes)
        self.disk = PageSpill(
            self.tree, self.pages, store, need_snapshot=self.has_state, agree=self._agree
        )

    def close(self) -> None:
        """Write what is worth keeping to disk."""
        if self.disk is not None:
            self.disk.close()

    def load(self, row: Row, match: Match) -> None:
        """Fill a new row with a cached prefix."""
        layers = self.pages.gather_all(match.pages, match.num_tokens) if self._kv else []
        leaves = row.home.leaves
        for place, (keys, values) in zip(self._kv_places, layers, strict=True):
            leaf = leaves[place]
            assert isinstance(leaf, BatchedKVCache)
            leaf.write(row.index, keys, values)
        if self.has_state:
            states = [leaf for leaf in leaves if isinstance(leaf, BatchedStateCache)]
            for leaf, saved in zip(states, match.snapshot, strict=True):
                leaf.restore(row.index, saved)
        row.length = match.num_tokens

    def save(self, row: Row, sequence: Held) -> None:
        """Keep a row's full pages, as far as its tokens are known."""
        known = min(row.length, sequence.num_tokens)
        full = known // PAGE_SIZE * PAGE_SIZE
        before = self._stored.get(sequence.id, 0)
        if full <= before or (self.ring is not None and row.length - before > self.ring):
            return
        if not self._agree(row.home.is_finite(row, before)):
            return  # whoever found it would be NaN, too
        snapshot = None
        if self.has_state:
            if full != row.length:
                return  # a state belongs to the row's last token only
            snapshot = lambda: _snapshot(row)  # noqa: E731

        def write(pages: list[int], start: int) -> None:
            if self._kv:
                stop = start + len(pages) * PAGE_SIZE
                leaves = row.home.leaves
                self.pages.write_all(
                    pages,
                    [leaves[p].read(row.index, start, stop) for p in self._kv_places],
                )

        # A sliding window has overwritten older positions; they cannot be stored any more.
        oldest = 0 if self.ring is None else max(0, row.length - self.ring)
        self.tree.store(
            sequence.namespace, sequence.keys[:full], write, snapshot, available_from=oldest
        )
        self._stored[sequence.id] = full

    def save_chunk(self, row: Row, sequence: Held) -> None:
        """Save pages and states that will be overwritten before the prompt is done."""
        left = sequence.num_tokens - 1 - row.length
        if self.has_state:
            if left < PAGE_SIZE or row.length % SNAPSHOT_DISTANCE == 0:
                self.save(row, sequence)
        elif left == 0 or self.ring is not None:
            self.save(row, sequence)

    def forget(self, sequence: Held) -> None:
        """The sequence gives its row back."""
        self._stored.pop(sequence.id, None)


def _spec(leaf: BatchedKVCache) -> LayerSpec:
    keys, values = leaf.arrays
    return LayerSpec.of(keys, values)


def _state_bytes(cache: BatchedCache | RowCache) -> int:
    states = [leaf for leaf in cache.leaves if isinstance(leaf, BatchedStateCache)]
    return sum(array.nbytes // array.shape[0] for leaf in states for array in leaf.arrays)


def _snapshot(row: Row) -> list[list[Any]]:
    states = [leaf for leaf in row.home.leaves if isinstance(leaf, BatchedStateCache)]
    saved = [leaf.snapshot(row.index) for leaf in states]
    mx.eval(saved)
    return saved
