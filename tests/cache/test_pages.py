"""What is in the pages: bits, shapes, memory, and pages that come and go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlx_parallm.cache.prefixes.pages import KVCacheAllocator, PagedKVCache
from mlx_parallm.cache.prefixes.prefix_cache import (
    IntegrityError,
    PagesExhaustedError,
    RadixAttentionCache,
)
from mlx_parallm.models.adapting.layer_spec import LayerSpec

SIZE = 4
# Layers differ: heads, and K wider than V, as in multi-head latent attention.
LAYERS = [LayerSpec(2, 8, 8), LayerSpec(1, 12, 4)]


def make(num_pages: int = 200, **options: Any) -> PagedKVCache:
    return PagedKVCache(LAYERS, num_pages, page_size=SIZE, **options)


def random_layers(tokens: int, seed: int = 0, dtype: mx.Dtype = mx.float32) -> Any:
    """K and V of LAYERS, (heads, tokens, dim)."""
    keys = iter(mx.random.split(mx.random.key(seed), 2 * len(LAYERS)))

    def draw(heads: int, dim: int) -> mx.array:
        return mx.random.normal((heads, tokens, dim), key=next(keys)).astype(dtype)

    return [(draw(s.kv_heads, s.k_dim), draw(s.kv_heads, s.v_dim)) for s in LAYERS]


def same(one: mx.array, other: mx.array) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    # As bytes: -0.0 is not 0.0, and NaN is NaN.
    return bool(mx.array_equal((one - 0).view(mx.uint8), (other - 0).view(mx.uint8)))


def assert_layers(found: Any, expected: Any, order: list[int] | slice = slice(None)) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for plane, wanted in zip(one, other, strict=True):
            index = order if isinstance(order, slice) else mx.array(order)
            assert same(plane, wanted[:, index])


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_what_is_written_is_gathered_bit_for_bit(dtype: mx.Dtype) -> None:
    cache = make(dtype=dtype)
    pages = cache.allocate_pages(150) or []  # more than one run
    layers = random_layers(150 * SIZE, dtype=dtype)
    layers[0][0][:, 0] = mx.array([-0.0, float("nan"), float("inf"), 1e-45, 0, 0, 0, 0])
    cache.write_all(pages, layers)
    assert_layers(cache.gather_all(pages), layers)
    assert_layers(cache.gather_all(pages, 599), layers, slice(0, 599))
    assert_layers(cache.gather_all(pages, 3), layers, slice(0, 3))
    assert_layers(cache.gather_all(pages[70:75]), layers, slice(280, 300))
    assert_layers(cache.gather_all([]), layers, slice(0, 0))
    assert cache.nbytes == 150 * cache.page_nbytes
    cache.check_integrity()


def test_pages_can_be_gathered_in_any_order_and_often() -> None:
    cache = make()
    pages = cache.allocate_pages(4) or []
    layers = random_layers(4 * SIZE)
    cache.write_all(pages, layers)
    order = [2, 1, 1, 3, 0]
    tokens = [SIZE * place + i for place in order for i in range(SIZE)]
    assert_layers(cache.gather_all([pages[place] for place in order]), layers, tokens)


def test_tokens_first_for_one_layer() -> None:
    cache = make()
    pages = cache.allocate_pages(3) or []
    layers = random_layers(3 * SIZE)
    cache.write_all(pages, layers)
    for layer, keys_values in enumerate(layers):
        for cache_type, plane in zip("kv", keys_values, strict=True):
            found = cache.gather_pages(pages, 10, cache_type, layer)
            assert same(found, plane.swapaxes(0, 1)[:10])
            page = cache.get_page(pages[1], cache_type, layer)
            assert same(page, plane.swapaxes(0, 1)[SIZE : 2 * SIZE])


def test_planes_can_be_written_one_by_one() -> None:
    cache = make()
    pages = cache.allocate_pages(70) or []
    layers = random_layers(70 * SIZE)
    with pytest.raises(ValueError, match="holds nothing"):
        cache.gather_all(pages)
    for layer, keys_values in enumerate(layers):
        for cache_type, plane in zip("kv", keys_values, strict=True):
            with pytest.raises(ValueError, match=r"not written|holds nothing"):
                mx.eval(cache.gather_pages(pages, 5, cache_type, layer))
            cache.write_pages(pages, plane.swapaxes(0, 1), cache_type, layer)
            cache.check_integrity()
    assert_layers(cache.gather_all(pages), layers)
    assert cache.nbytes == 70 * cache.page_nbytes


def test_a_page_is_written_once() -> None:
    cache = make()
    pages = cache.allocate_pages(3) or []
    layers = random_layers(2 * SIZE)
    cache.write_all(pages[:2], layers)
    with pytest.raises(ValueError, match="written already"):
        cache.write_all(pages[1:], random_layers(2 * SIZE, seed=1))
    with pytest.raises(ValueError, match="written already"):
        cache.write_pages(pages[:2], layers[0][0].swapaxes(0, 1))
    assert_layers(cache.gather_all(pages[:2]), layers)
    assert cache.nbytes == 2 * cache.page_nbytes


def test_wrong_writes_change_nothing() -> None:
    cache = make(4)
    pages = cache.allocate_pages(2) or []
    layers = random_layers(2 * SIZE)
    half = [(keys.astype(mx.float16), values) for keys, values in layers]
    wrong: list[tuple[list[int], Any, str]] = [
        ([pages[0], 3], layers, "page 3 is free"),
        ([pages[0]] * 2, layers, "twice"),
        (pages, layers[:1], "1 layers were given for 2"),
        (pages, layers[::-1], "k of layer 0"),
        (pages[:1], layers, "k of layer 0"),
        (pages, half, "float16"),
    ]
    for page_ids, given, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            cache.write_all(page_ids, given)
    data = layers[0][0].swapaxes(0, 1)
    for cache_type, layer, reason in (("x", 0, "cache_type"), ("k", 2, "no layer 2")):
        with pytest.raises(ValueError, match=reason):
            cache.write_pages(pages, data, cache_type, layer)
    with pytest.raises(ValueError, match="do not hold 9 tokens"):
        cache.gather_all(pages, 9)
    cache.write_pages(pages, data)
    with pytest.raises(ValueError, match="same list of pages"):
        cache.write_pages(pages[:1], layers[0][1][:, :SIZE].swapaxes(0, 1), "v")
    cache.check_integrity()


def test_memory_bounds_the_pages() -> None:
    page = (2 * 8 + 2 * 8 + 12 + 4) * SIZE * 2
    cache = PagedKVCache(LAYERS, memory=10 * page + 1, page_size=SIZE, dtype=mx.float16)
    assert (cache.page_nbytes, cache.num_pages) == (page, 10)
    with pytest.raises(ValueError, match="must be given"):
        PagedKVCache(LAYERS)
    with pytest.raises(ValueError, match="must be given"):
        PagedKVCache([], memory=1 << 20)
    assert PagedKVCache([], 5).num_pages == 5  # a recurrent model: numbers only


def test_specs_are_read_from_arrays() -> None:
    keys, values = mx.zeros((3, 2, 64, 8)), mx.zeros((3, 2, 64, 4))
    assert LayerSpec.of(keys, values) == LayerSpec(2, 8, 4)


# Memory


def test_freed_pages_give_their_memory_back() -> None:
    layers = [LayerSpec(4, 64, 64)]
    cache = PagedKVCache(layers, 256)
    shape = (4, 64 * cache.page_size, 64)

    def fill() -> list[int]:
        pages = cache.allocate_pages(64) or []
        cache.write_all(pages, [(mx.random.normal(shape), mx.random.normal(shape))])
        return pages

    fill()
    before = mx.get_active_memory()
    pages = fill()
    whole = 64 * cache.page_nbytes
    assert mx.get_active_memory() - before == pytest.approx(whole, rel=0.02)
    for last in range(63, 0, -1):  # from the end, as leaves are evicted
        cache.free_pages([pages[last]])
        assert cache.nbytes <= whole + last * cache.page_nbytes * 4 / 3
        held = mx.get_active_memory() - before
        assert held <= last * cache.page_nbytes * 4 / 3 + 100_000
    cache.free_pages(pages[:1])
    assert cache.nbytes == whole
    assert mx.get_active_memory() - before <= 100_000


def test_memory_is_never_over_its_bound() -> None:
    cache = make(64)
    pages = cache.allocate_pages(64) or []
    cache.write_all(pages, random_layers(64 * SIZE))
    cache.free_pages(pages[-15:])  # less than a quarter: stays where it is
    assert cache.nbytes == 64 * cache.page_nbytes
    cache.write_all(cache.allocate_pages(15) or [], random_layers(15 * SIZE))
    assert cache.nbytes == 64 * cache.page_nbytes
    cache.check_integrity()


def test_pages_are_not_part_of_the_row_they_came_from() -> None:
    cache = PagedKVCache([LayerSpec(4, 64, 64)], 8)
    rows = [mx.random.normal((1, 4, 1024, 64)) for _ in range(2)]
    mx.eval(rows)
    pages = cache.allocate_pages(1) or []
    before = mx.get_active_memory()
    cache.write_all(pages, [(rows[0][0, :, :16], rows[1][0, :, :16])])
    expected = np.array(rows[0][0, :, :16])
    rows[0][:, :, :16] = 0.0
    mx.eval(rows)
    assert np.array_equal(np.array(cache.gather_all(pages)[0][0]), expected)
    del rows
    assert mx.get_active_memory() < before


def test_a_gather_outlives_its_pages() -> None:
    cache = make()
    pages = cache.allocate_pages(8) or []
    layers = random_layers(8 * SIZE)
    cache.write_all(pages[:4], [(k[:, :16], v[:, :16]) for k, v in layers])
    cache.write_all(pages[4:], [(k[:, 16:], v[:, 16:]) for k, v in layers])
    found = cache.gather_all(pages)
    cache.free_pages(pages)
    again = cache.allocate_pages(8) or []
    cache.write_all(again, random_layers(8 * SIZE, seed=1))
    assert_layers(found, layers)


def test_references_keep_contents() -> None:
    cache = make()
    pages = cache.allocate_pages(2) or []
    layers = random_layers(2 * SIZE)
    cache.write_all(pages, layers)
    cache.add_reference(pages)
    cache.free_pages(pages)
    assert_layers(cache.gather_all(pages), layers)
    cache.free_pages(pages)
    assert cache.nbytes == 0
    with pytest.raises(ValueError, match="holds nothing"):
        cache.gather_all(pages)


@pytest.mark.parametrize("damage", ["free", "place", "run", "bytes"])
def test_damage_is_noticed(damage: str) -> None:
    cache = make()
    pages = cache.allocate_pages(3) or []
    cache.write_all(pages, random_layers(3 * SIZE))
    cache.check_integrity()
    run, _ = cache._where[pages[0]]
    if damage == "free":
        cache.pool.on_free = None
        cache.free_pages(pages[:1])
    elif damage == "place":
        cache._where[pages[0]] = (run, 1)
    elif damage == "run":
        del cache._where[pages[0]]
    else:
        cache._nbytes += 1
    with pytest.raises(IntegrityError):
        cache.check_integrity()


class PagesMachine(RuleBasedStateMachine):
    """Writes, frees and gathers at random: each page always holds what was written to it."""

    @initialize(num_pages=st.integers(1, 150))
    def start(self, num_pages: int) -> None:
        self.cache = PagedKVCache([LayerSpec(1, 2, 1)], num_pages, page_size=2)
        self.contents: dict[int, float] = {}
        self.value = 0.0

    @rule(num_pages=st.integers(1, 80))
    def write(self, num_pages: int) -> None:
        pages = self.cache.allocate_pages(num_pages)
        if pages is None:
            assert num_pages > self.cache.num_pages - len(self.contents)
            return
        values = np.arange(num_pages, dtype=np.float32) + self.value
        self.value += num_pages
        column = mx.array(np.repeat(values, 2)[None, :, None])
        self.cache.write_all(pages, [(mx.repeat(column, 2, axis=2), -column)])
        self.contents.update(zip(pages, values.tolist(), strict=True))

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        pages = data.draw(st.permutations(sorted(self.contents)))
        pages = pages[: data.draw(st.integers(1, len(pages)))]
        self.cache.free_pages(pages)
        for page in pages:
            del self.contents[page]

    @precondition(lambda self: self.contents)
    @rule(data=st.data())
    def gather(self, data: st.DataObject) -> None:
        pages = data.draw(st.lists(st.sampled_from(sorted(self.contents)), min_size=1))
        seq_len = 2 * len(pages) - data.draw(st.integers(0, 1))
        keys, values = self.cache.gather_all(pages, seq_len)[0]
        expected = np.repeat([self.contents[page] for page in pages], 2)[:seq_len]
        assert np.array_equal(np.array(keys)[0], np.stack([expected, expected], axis=1))
        assert np.array_equal(np.array(values)[0, :, 0], -expected)

    @invariant()
    def holds_no_more_than_it_says(self) -> None:
        if hasattr(self, "cache"):
            self.cache.check_integrity()
            assert self.cache.pool.num_used == len(self.contents)
            assert self.cache.nbytes <= self.cache.num_pages * self.cache.page_nbytes


TestPagesMachine = PagesMachine.TestCase
TestPagesMachine.settings = settings(max_examples=30, stateful_step_count=20)


# Together with the tree


def test_requests_read_shared_pages() -> None:
    storage = make(16)
    cache = RadixAttentionCache(storage.pool, SIZE, storage=storage)
    layers = random_layers(12)
    first = cache.add_request("a", list(range(10)))
    storage.write_all(first["new_pages"], layers)
    cache.publish_request("a")
    second = cache.add_request("b", [*range(8), 99])
    assert second["shared_tokens"] == 8
    storage.write_all(second["new_pages"], random_layers(SIZE, seed=1))
    found = cache.get_kv_cache("b", "v", 1)
    assert found.shape == (9, 1, 4)
    assert same(found[:8], layers[1][1].swapaxes(0, 1)[:8])
    for name in "ab":
        cache.remove_request(name)
    cache.clear()
    assert storage.nbytes == 0
    storage.check_integrity()


def test_the_allocator_of_single_pages() -> None:
    allocator = KVCacheAllocator(LAYERS[:1], 2, page_size=SIZE)
    page = allocator.allocate_page()
    data = random_layers(SIZE)[0][0].swapaxes(0, 1)
    allocator.write_pages([page], data[:3], cache_type="k")
    assert same(allocator.gather_pages([page], 3, "k"), data[:3])
    assert allocator.get_page(page, "k").shape == (SIZE, 2, 8)
    assert not allocator.get_page(page, "k")[3].any()
    with pytest.raises(ValueError, match="v of layer 0 was not written"):
        allocator.get_page(page, "v")
    allocator.add_page_reference(page)
    allocator.free_page(page)
    allocator.allocate_page()
    with pytest.raises(PagesExhaustedError):
        allocator.allocate_page()
    allocator.free_page(page)
    assert allocator.allocate_page() == page
    for wrong in (9, 0):
        with pytest.raises(ValueError, match="k of layer 0"):
            allocator.write_pages([page], mx.zeros((wrong, 2, 8)))


# Cost


def test_a_long_prefix_is_read_and_written_without_a_copy_of_all_pages() -> None:
    """1,024 tokens of 8 layers, a quarter of the pages: memory is used for these alone."""
    cache = PagedKVCache([LayerSpec(4, 64, 64)] * 8, 256)
    rows = [(mx.random.normal((4, 1024, 64)),) * 2 for _ in range(8)]
    mx.eval(rows)
    nbytes = sum(k.nbytes + v.nbytes for k, v in rows)

    def used(action: Callable[[], Any]) -> int:
        """Bytes at the most, beside what was held before."""
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(action())
        return mx.get_peak_memory() - before

    for _ in range(4):
        pages = cache.allocate_pages(64) or []
        cache.write_all(pages, rows)
    cache.free_pages(pages)
    pages = cache.allocate_pages(64) or []
    assert used(lambda: cache.write_all(pages, rows)) < 1.5 * nbytes
    assert used(lambda: cache.gather_all(pages)) < 1.5 * nbytes
