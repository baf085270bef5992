"""The caches of a running batch against rows kept one by one.

Every K that is written is a number of its own, so that what a query may see can be
compared with what its row holds: a wrong row, column, mask or ring is a wrong number.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import (
    ArraysCache,
    CacheList,
    ChunkedKVCache,
    KVCache,
    QuantizedKVCache,
    RotatingKVCache,
)

from mlx_parallm.cache import batch, kv_cache
from mlx_parallm.cache.batch import BatchedCache, BatchedKVCache, BatchedStateCache
from mlx_parallm.cache.kv_cache import view_block
from mlx_parallm.cache.span import Row
from mlx_parallm.errors import ModelLoadError

WINDOW = 8
WIDTH = 24  # small rings: they wrap after 64 tokens
HEADS = 2


@pytest.fixture(autouse=True, scope="module")
def _small_rings() -> Iterator[None]:
    with (
        mock.patch.object(batch, "MAX_WIDTH", WIDTH),
        mock.patch.object(kv_cache, "MAX_WIDTH", WIDTH),
    ):
        yield


def batch_of(*caches: Any) -> BatchedCache:
    return BatchedCache(SimpleNamespace(make_cache=lambda: list(caches)))


class Twin:
    """A batch of one plain, one windowed and one recurrent layer, and its rows as lists.

    keys: every token's number; state: how many tokens the row has seen.
    """

    def __init__(self) -> None:
        self.batch = batch_of(KVCache(), RotatingKVCache(WINDOW), ArraysCache(1))
        self.rows: dict[Row, list[int]] = {}
        self.states: dict[Row, int] = {}
        self.counter = 0

    def join(self) -> None:
        row = self.batch.join()
        self.rows[row], self.states[row] = [], 0

    def fork(self, row: Row) -> None:
        copy = self.batch.fork(row)
        self.rows[copy], self.states[copy] = list(self.rows[row]), self.states[row]

    def leave(self, row: Row) -> None:
        self.batch.leave(row)
        del self.rows[row], self.states[row]

    def move(self, row: Row, home: Twin) -> None:
        self.batch.move(row, home.batch)
        home.rows[row], home.states[row] = self.rows.pop(row), self.states.pop(row)
        home.counter = self.counter = max(home.counter, self.counter)  # later means larger

    def swap(self, one: Row, other: Row) -> None:
        self.batch.swap(one, other)

    def rewind(self, row: Row, count: int) -> None:
        count = min(count, len(self.rows[row]), WIDTH)
        self.batch.rewind(row, count)
        del self.rows[row][len(self.rows[row]) - count :]

    def forward(self, start: int, stop: int, counts: list[int]) -> None:
        """Each row of [start, stop) gets so many tokens, padded to the widest."""
        width = max(*counts, 1)
        rows = self.batch.rows[start:stop]
        new = np.zeros((len(rows), width), dtype=np.float32)
        for place, (row, count) in enumerate(zip(rows, counts, strict=True)):
            numbers = list(range(self.counter + 1, self.counter + 1 + count))
            self.counter += count
            new[place, :count] = numbers
            new[place, count:] = -1  # padding, which nobody may ever see
            self.rows[row] += numbers
        self.batch.begin(start, stop, width, counts)
        for layer, window in zip(self.batch.layers[:2], (None, WINDOW), strict=True):
            self.check_attention(layer, new, counts, window)
        self.advance_states(rows, counts)
        self.batch.commit()
        self.check()

    def check_attention(
        self, layer: Any, new: np.ndarray, counts: list[int], window: int | None
    ) -> None:
        heads = mx.array(new)[:, None, :, None] * mx.array([1.0, 1000.0])[:, None, None]
        assert layer.offset.tolist() == self.batch.span.lengths.tolist()
        mask = layer.make_mask(new.shape[1], return_array=True)
        keys, values = layer.update_and_fetch(heads, -heads)
        seen, seen_values = np.array(keys), np.array(values)
        assert (seen[:, 1] == seen[:, 0] * 1000).all() and (seen_values == -seen).all()
        allowed = np.broadcast_to(np.array(mask), (len(counts), 1, new.shape[1], seen.shape[2]))
        for place, count in enumerate(counts):
            held = self.rows[self.batch.rows[self.batch.span.start + place]]
            for token in range(count):
                upto = held[: len(held) - count + token + 1]
                wanted = upto if window is None else upto[-window:]
                columns = allowed[place, 0, token]
                assert sorted(seen[place, 0, columns, 0].tolist()) == wanted

    def advance_states(self, rows: list[Row], counts: list[int]) -> None:
        layer = self.batch.layers[2]
        assert isinstance(layer, BatchedStateCache)
        span, old = self.batch.span, layer[0]
        lengths = layer.lengths
        real = mx.array(counts) if lengths is None else lengths
        assert real.tolist() == counts
        mask = layer.make_mask(span.width)
        assert mask is None or mask.sum(axis=1).tolist() == counts
        before = mx.zeros((span.size, 3)) if old is None else old
        layer[0] = before + real[:, None]
        layer.advance(span.width)
        for row, count in zip(rows, counts, strict=True):
            self.states[row] += count

    def check(self) -> None:
        batch = self.batch
        assert set(batch.rows) == set(self.rows)
        assert [row.index for row in batch.rows] == list(range(len(batch.rows)))
        assert batch.slots >= len(batch.rows)
        state = batch.layers[2].states[0]  # type: ignore[attr-defined]
        for row, held in self.rows.items():
            assert row.length == len(held)
            if state is not None:
                assert state[row.index].tolist() == [self.states[row]] * 3


OPERATIONS = ["join", "join", "fork", "leave", "swap", "rewind", "step", "step", "ragged", "span"]


@given(data=st.data(), operations=st.lists(st.sampled_from(OPERATIONS), min_size=12, max_size=40))
@settings(max_examples=60)
def test_rows_join_leave_move_and_rewind_alone(data: st.DataObject, operations: list[str]) -> None:
    twin = Twin()
    twin.join()
    for operation in operations:
        rows = twin.batch.rows
        if not rows or operation == "join":
            twin.join()
            continue
        some_row = st.sampled_from(list(rows))
        if operation == "fork":
            twin.fork(data.draw(some_row))
        elif operation == "leave":
            twin.leave(data.draw(some_row))
        elif operation == "swap":
            twin.swap(data.draw(some_row), data.draw(some_row))
        elif operation == "rewind":
            twin.rewind(data.draw(some_row), data.draw(st.integers(0, 5)))
        else:
            start, stop = 0, len(rows)
            if operation == "span":
                start = data.draw(st.integers(0, len(rows) - 1))
                stop = data.draw(st.integers(start + 1, len(rows)))
            same = data.draw(st.integers(1, WIDTH))
            few = st.integers(0, data.draw(st.sampled_from([2, WIDTH])))
            counts = [data.draw(few) if operation == "ragged" else same for _ in range(start, stop)]
            twin.forward(start, stop, counts)
        twin.check()
    for row in list(twin.batch.rows):
        twin.leave(row)
    assert twin.batch.nbytes == 0


def test_rings_wrap_and_rows_in_them_stay_apart() -> None:
    twin = Twin()
    for _ in range(3):
        twin.join()
    for step in range(30):
        twin.forward(0, 3, [(step * 7 + row * 5) % WIDTH for row in range(3)])
    assert max(len(held) for held in twin.rows.values()) > 300
    ring = twin.batch.layers[1]
    assert isinstance(ring, BatchedKVCache) and ring.capacity == ring.ring_size == 64
    for _ in range(70):
        twin.forward(0, 3, [1, 1, 1])


def test_a_row_moves_among_shorter_ones_and_among_longer_ones() -> None:
    """As rows of other weights or of another micro-batch do."""
    one, other = Twin(), Twin()
    for twin, steps in ((one, 5), (other, 1)):
        twin.join()
        for _ in range(steps):
            twin.forward(0, 1, [WIDTH])
    (long,), (short,) = one.batch.rows, other.batch.rows
    one.move(long, other)
    other.forward(0, 2, [1, 2])
    one.join()
    one.forward(0, 1, [1])
    other.move(short, one)
    one.forward(0, 2, [WIDTH, 3])
    other.forward(0, 1, [1])


def test_memory_follows_the_rows() -> None:
    twin = Twin()
    for _ in range(16):
        twin.join()
    twin.forward(0, 16, [2] * 16)
    for _ in range(20):
        twin.forward(0, 1, [WIDTH])
    full = twin.batch.nbytes
    twin.leave(twin.batch.rows[0])
    assert twin.batch.nbytes <= full / 2, "the long row's columns are given back"
    while len(twin.batch.rows) > 1:
        twin.leave(twin.batch.rows[-1])
        twin.check()
    assert twin.batch.slots <= 2
    twin.forward(0, 1, [1])
    twin.leave(twin.batch.rows[0])
    assert twin.batch.nbytes == 0


def forward(batch: BatchedCache, counts: list[int], layer: int = 0) -> Any:
    """Write ones; returns what make_mask says."""
    width = max(counts)
    batch.begin(0, len(counts), width, counts)
    cache = batch.layers[layer]
    mask = cache.make_mask(width)  # type: ignore[attr-defined]
    ones = mx.ones((len(counts), HEADS, width, 4))
    cache.update_and_fetch(ones, ones)  # type: ignore[attr-defined]
    batch.commit()
    return mask


def test_rows_that_agree_need_no_mask() -> None:
    batch = batch_of(KVCache())
    batch.join()
    batch.join()
    assert isinstance(forward(batch, [5, 5]), str)
    assert forward(batch, [1, 1]) is None
    assert forward(batch, [3, 2]).shape == (2, 1, 3, view_block())
    assert forward(batch, [1, 1]).shape == (2, 1, 1, view_block())


def test_a_window_needs_no_mask_before_it_is_full() -> None:
    batch = batch_of(RotatingKVCache(WINDOW))
    batch.join()
    assert isinstance(forward(batch, [WINDOW - 1]), str)
    assert forward(batch, [1]) is None
    assert forward(batch, [1]).sum().item() == WINDOW


def test_the_models_own_window_on_a_plain_cache() -> None:
    """Some models keep everything and mask by themselves."""
    batch = batch_of(KVCache())
    batch.join()
    forward(batch, [10])
    batch.begin(0, 1, 2, [2])
    mask = batch.layers[0].make_mask(2, window_size=3)  # type: ignore[attr-defined]
    assert np.array(mask)[0, 0].astype(int).tolist() == [
        [0] * 8 + [1, 1, 1, 0],
        [0] * 9 + [1, 1, 1],
    ]


def test_layers_that_share_k_and_v() -> None:
    batch = batch_of(KVCache())
    batch.join()
    batch.begin(0, 1, 3, [3])
    layer = batch.layers[0]
    assert isinstance(layer, BatchedKVCache)
    ones = mx.ones((1, HEADS, 3, 4))
    fetched = layer.update_and_fetch(ones, 2 * ones)
    again = layer.keys_and_values()
    assert all((a == b).all().item() for a, b in zip(fetched, again, strict=True))


@pytest.mark.parametrize("length", [5, 64, 100, 200])
def test_what_is_read_can_be_written_to_another_row(length: int) -> None:
    """Prefixes go from row to page to row, as much of them as a window keeps."""
    for cache in (KVCache(), RotatingKVCache(WINDOW)):
        batch = batch_of(cache)
        one = batch.join()
        layer = batch.layers[0]
        assert isinstance(layer, BatchedKVCache)
        numbers = mx.arange(1, length + 1).astype(mx.float32)
        for first in range(0, length, WIDTH):
            part = numbers[first : first + WIDTH]
            batch.begin(0, 1, part.size, [part.size])
            keys = mx.broadcast_to(part[None, None, :, None], (1, HEADS, part.size, 4))
            layer.update_and_fetch(keys, -keys)
            batch.commit()
        start = max(0, length - layer.capacity)
        keys, values = layer.read(one.index, start, length)
        assert keys[0, :, 0].tolist() == numbers[start:].tolist()
        assert (values == -keys).all().item()
        other = batch.join()
        missing = mx.zeros((HEADS, start, 4))
        layer.write(
            other.index,
            mx.concatenate([missing, keys], axis=1),
            mx.concatenate([missing, values], axis=1),
        )
        other.length = length
        assert (layer.arrays[0][0] == layer.arrays[0][1]).all().item()


def test_snapshots_are_safe_from_what_comes_later() -> None:
    batch = batch_of(ArraysCache(2))
    row = batch.join()
    layer = batch.layers[0]
    assert isinstance(layer, BatchedStateCache)

    def put(value: float) -> None:
        batch.begin(0, len(batch.rows), 1, [1] * len(batch.rows))
        layer[0] = mx.full((len(batch.rows), 3), value)
        batch.commit()

    put(1.0)
    saved = layer.snapshot(row.index)
    put(2.0)
    other = batch.join()
    layer.restore(other.index, saved)
    assert layer.states[0] is not None
    assert layer.states[0][: len(batch.rows)].tolist() == [[2.0] * 3, [1.0] * 3]
    assert layer.states[1] is None, "a state that was never written stays so"
    fresh = batch_of(ArraysCache(2))
    fresh.join()
    fresh.layers[0].restore(0, saved)  # type: ignore[attr-defined]
    assert fresh.layers[0].states[0].tolist() == [[1.0] * 3]  # type: ignore[attr-defined]


def test_a_new_row_does_not_see_the_old_ones_state() -> None:
    batch = batch_of(ArraysCache(1))
    first, _, third = batch.join(), batch.join(), batch.join()
    layer = batch.layers[0]
    assert isinstance(layer, BatchedStateCache)
    batch.begin(0, 3, 1, [1, 1, 1])
    layer[0] = mx.full((3, 3), 5.0)
    batch.commit()
    batch.leave(third)
    fresh = batch.join()
    assert layer.states[0] is not None
    assert layer.states[0][first.index].tolist() == [5.0] * 3
    assert layer.states[0][fresh.index].tolist() == [0.0] * 3


def test_lists_of_caches() -> None:
    batch = batch_of(CacheList(KVCache(), ArraysCache(1)), KVCache())
    assert [type(leaf) for leaf in batch.leaves] == [
        BatchedKVCache,
        BatchedStateCache,
        BatchedKVCache,
    ]
    assert batch.has_state
    assert not batch_of(KVCache()).has_state
    inner = batch.layers[0][0]  # type: ignore[index]
    batch.join()
    batch.begin(0, 1, 2, [2])
    inner.update_and_fetch(mx.ones((1, HEADS, 2, 4)), mx.ones((1, HEADS, 2, 4)))
    batch.commit()
    assert batch.nbytes == inner.arrays[0].nbytes * 2


@pytest.mark.parametrize(
    "cache", [RotatingKVCache(WINDOW, keep=4), QuantizedKVCache(), ChunkedKVCache(8)]
)
def test_caches_that_cannot_be_batched_are_refused(cache: Any) -> None:
    with pytest.raises(ModelLoadError, match=type(cache).__name__):
        batch_of(KVCache(), cache)


def test_forwards_are_opened_closed_and_bounded() -> None:
    batch = batch_of(KVCache())
    batch.join()
    with pytest.raises(RuntimeError, match="no forward"):
        _ = batch.span
    with pytest.raises(ValueError, match="over"):
        batch.begin(0, 1, WIDTH + 1, [WIDTH + 1])
    batch.begin(0, 1, 2, [1])
    batch.commit()
    assert batch.rows[0].length == 1
    with pytest.raises(RuntimeError, match="no forward"):
        _ = batch.span
