"""The RowCache: rows of any lengths, each in the length class that fits it.

A class is a BatchedCache whose rows all have as many columns. A row that outgrows its
class moves to the next one, a few tokens before it has to, so that not all rows move in
one step. A forward may cover rows of all classes; see packed_span.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Sequence as Items
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.cache.extended_mind import Cited
from mlx_parallm.cache.kv_cache import BatchedKVCache
from mlx_parallm.cache.layer_cache import LayerCache
from mlx_parallm.cache.length_class import capacity_for
from mlx_parallm.cache.packed_layer import PackedLayer
from mlx_parallm.cache.packed_span import Group, PackedSpan
from mlx_parallm.cache.span import Row

Work = Items[tuple[Row, int]]
"""Rows and how many new tokens each."""

_AHEAD = 32  # tokens before its class is full, from which on a row may move
_CROWD = 4  # rows of one chunk group at most; more padding is computed with more of them


class RowCache:
    """The caches of all layers and rows of a running batch, for models that can be packed.

    Args:
        model: an mlx-lm model whose layers are all attention.
        bucket: how many tokens the model is given for so many, so that few shapes occur.
        additive: see PackedLayer.
    """

    has_state = False

    def __init__(
        self, model: Any, bucket: Callable[[int], int] = int, *, additive: bool = False
    ) -> None:
        self._model = model
        self._bucket = bucket
        self.classes: dict[int, BatchedCache] = {}
        self._span: PackedSpan | None = None
        # One of no columns says what the layers are like.
        self._shape = BatchedCache(model, capacity=1)
        leaves = self._shape.layers
        assert all(type(leaf) is BatchedKVCache for leaf in leaves)
        windows = [leaf.window for leaf in leaves if isinstance(leaf, BatchedKVCache)]
        self.layers = [
            PackedLayer(self, place, window, additive=additive)
            for place, window in enumerate(windows)
        ]

    @property
    def span(self) -> PackedSpan:
        """The forward that is under way."""
        if self._span is None:
            raise RuntimeError("no forward is under way")
        return self._span

    @property
    def rows(self) -> list[Row]:
        """All rows, class by class; those that decode are first in their class."""
        return [row for home in self._homes() for row in home.rows]

    @property
    def arrays(self) -> list[mx.array]:
        """Every buffer."""
        return [array for home in self._homes() for array in home.arrays]

    @property
    def leaves(self) -> list[LayerCache]:
        """The layers of some class; its buffers, where a row has computed anything, show the
        model's shapes."""
        return next((home.leaves for home in self._homes() if home.arrays), self._shape.leaves)

    @property
    def bytes_per_token(self) -> int:
        """Bytes of K and V that one token takes in all layers, once a row has computed any."""
        return max((home.bytes_per_token for home in self._homes() if home.arrays), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(home.nbytes for home in self._homes())

    def join(self, tokens: int) -> Row:
        """A new, empty row with room for so many tokens."""
        return self._home(capacity_for(tokens)).join()

    def adopt(self, row: Row) -> None:
        """Take over a row of another RowCache of the same model."""
        home: BatchedCache = row.home
        home.move(row, self._home(home.capacity or capacity_for(row.length)))

    def leave(self, row: Row) -> None:
        """Take a row out."""
        row.home.leave(row)

    def fork(self, row: Row) -> Row:
        """A new row with the contents of another one."""
        home: BatchedCache = row.home
        return home.fork(row)

    def to_decoding(self, row: Row) -> None:
        """The row has caught up."""
        row.home.to_decoding(row)

    def rewind(self, row: Row, count: int) -> None:
        """Forget a row's last `count` tokens."""
        row.length -= count

    def is_finite(self, row: Row, first: int) -> bool:
        """Whether what a row holds is finite from position `first` on."""
        home: BatchedCache = row.home
        return home.is_finite(row, first)

    def scrub(self) -> None:
        """Write zeros behind every row's tokens; see BatchedCache.scrub."""
        for home in self._homes():
            home.scrub()

    def begin(self, decode: Work, chunks: Work) -> PackedSpan:
        """Open a forward.

        Args:
            decode: all rows that decode, in the order of `rows`, and their tokens.
            chunks: rows that catch up.
        """
        groups, first = [], 0
        for home, start, stop, counts in [*_decoding(decode), *_catching_up(chunks)]:
            group = Group(home, home.over(start, stop, max(counts), counts), first)
            groups.append(group)
            first += group.size
        self._span = PackedSpan(groups, self._bucket(first))
        return self._span

    def place(self, row: Row) -> tuple[int, int]:
        """Where a row is among all rows, for sorting."""
        return row.home.capacity, row.index

    def places(self) -> dict[Row, np.ndarray]:
        """Where each row's tokens are in the forward under way, in their order there."""
        span, found = self.span, {}
        firsts, counts = span.layout.firsts.tolist(), np.diff(span.layout.firsts, append=span.size)
        at = 0
        for group in span.groups:
            for row in group.home.rows[group.span.start : group.span.stop]:
                found[row] = firsts[at] + np.arange(counts[at])
                at += 1
        return found

    def cited(self) -> list[Cited]:
        """Memories that the forward under way used, rows counted as they lie in it."""
        found, before = [], 0
        for group in self.span.groups:
            if group.span.memory is not None:
                for part in group.span.memory.cited():
                    part.rows = [row + before for row in part.rows]
                    found.append(part)
            before += group.span.size
        return found

    def commit(self) -> None:
        """Close the forward: its real tokens now belong to their rows."""
        for group in self.span.groups:
            group.home.computed(group.span)
        self._span = None

    def make_room(self, work: Work) -> None:
        """Move rows whose class is too small for so many new tokens, and of each class the
        longest row that it soon will be too small for."""
        for row, count in work:
            if row.length + count > row.home.capacity:
                self._move(row, row.length + count)
        for home in list(self._homes()):
            staying = home.capacity or 0
            growing = [row for row in home.rows if row.expected > staying]
            soon = max(growing, key=lambda row: row.length, default=None)
            if soon is not None and soon.length + _AHEAD > staying:
                self._move(soon, soon.length + _AHEAD)

    def _move(self, row: Row, tokens: int) -> None:
        row.home.move(row, self._home(capacity_for(tokens)))

    def _home(self, capacity: int) -> BatchedCache:
        if capacity not in self.classes:
            self.classes[capacity] = BatchedCache(self._model, capacity)
        return self.classes[capacity]

    def _homes(self) -> Iterator[BatchedCache]:
        return (self.classes[capacity] for capacity in sorted(self.classes))


Run = tuple[BatchedCache, int, int, list[int]]
"""A class, slots [start, stop) of it, and the tokens of each."""


def _decoding(work: Work) -> Iterator[Run]:
    """The decoding rows of each class: its first ones."""
    counts: dict[int, list[int]] = {}
    homes: dict[int, BatchedCache] = {}
    for row, count in work:
        homes[id(row.home)] = row.home
        counts.setdefault(id(row.home), []).append(count)
    for key, home in homes.items():
        if len(counts[key]) != home.num_decoding:
            raise RuntimeError("a row that decodes was left out of a step")
        yield home, 0, len(counts[key]), counts[key]


def _catching_up(work: Work) -> Iterator[Run]:
    """Chunks: neighbours of about one width together, up to a few, others alone."""
    ordered = sorted(work, key=lambda item: (item[0].home.capacity, item[0].index))
    run: list[tuple[Row, int]] = []
    for row, count in ordered:
        if run and not _joins(run, row, count):
            yield _run(run)
            run = []
        run.append((row, count))
    if run:
        yield _run(run)


def _joins(run: list[tuple[Row, int]], row: Row, count: int) -> bool:
    last = run[-1][0]
    if last.home is not row.home or last.index + 1 != row.index or len(run) >= _CROWD:
        return False
    counts = [n for _, n in run] + [count]
    return max(counts) * len(counts) * 4 <= sum(counts) * 5


def _run(run: list[tuple[Row, int]]) -> Run:
    row = run[0][0]
    return row.home, row.index, row.index + len(run), [count for _, count in run]
