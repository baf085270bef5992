"""The radix tree, without a model: matching, names of pages, and its naive twin."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest

from mlx_parallm.cache.prefixes.prefix_cache import (
    NaiveCache,
    PrefixCache,
    page_keys,
)
from tests.cache.prefixes import SIZE, keep, make


def test_no_mlx_is_imported() -> None:
    code = (
        "import sys, mlx_parallm.cache.prefixes.prefix_cache; "
        "sys.exit(any(n == 'mlx' or n.startswith('mlx.') for n in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Matching


def test_a_match_is_the_longest_prefix_in_whole_pages() -> None:
    cache = make()
    assert keep(cache, list(range(11))) == 2
    whole = cache.match((), list(range(11)))
    assert whole.num_tokens == 8
    assert cache.match((), [*range(7), 99]).pages == whole.pages[:1]
    assert cache.match((), list(range(3))).num_tokens == 0
    assert cache.match((), [1, *range(11)]).node is None
    assert cache.match((), list(range(11)), limit=7).num_tokens == 4
    assert cache.match((), tuple(range(8)), limit=8).num_tokens == 8


def test_entries_share_their_common_pages() -> None:
    cache = make()
    keep(cache, [*range(8), 1, 2, 3, 4])
    assert keep(cache, [*range(8), 5, 6, 7, 8]) == 1
    one = cache.match((), [*range(8), 1, 2, 3, 4]).pages
    other = cache.match((), [*range(8), 5, 6, 7, 8]).pages
    assert one[:2] == other[:2] and one[2] != other[2]
    assert cache.stats().cached_pages == cache.pool.num_used == 4


def test_namespaces_share_nothing() -> None:
    cache = make()
    keep(cache, list(range(8)), ("adapter", 1))
    assert cache.match(("adapter", 2), list(range(8))).num_tokens == 0
    assert keep(cache, list(range(8)), ("adapter", 2)) == 2
    cache.clear()
    assert not cache._roots


def test_a_page_is_written_once() -> None:
    cache = make(512)
    written: list[int] = []
    rng = random.Random(1)
    for _ in range(200):
        tokens = [rng.randrange(2) for _ in range(rng.randrange(20))]
        cache.store((), tokens, lambda pages, start: written.extend(pages))
    assert cache.stats().evicted_pages == 0
    assert len(written) == len(set(written)) == cache.stats().cached_pages


def test_insert_says_whose_each_page_is() -> None:
    cache = make()
    tokens = list(range(12))
    first = cache.allocate(2)
    assert cache.insert((), tokens[:8], first).new == first
    again = cache.allocate(3)
    inserted = cache.insert((), tokens, [first[0], *again[1:]])
    assert (inserted.new, inserted.duplicates) == ([again[2]], [again[1]])
    cache.pool.free_pages([again[0], *inserted.duplicates])
    cache.check_integrity(idle=True)


def test_a_wrong_insert_changes_nothing() -> None:
    cache = make()
    keep(cache, list(range(8)))
    owned = cache.match((), list(range(8))).pages
    fresh = cache.allocate(1)
    before = cache.stats()
    wrong: list[tuple[list[int], list[int], Any, str]] = [
        (list(range(3)), fresh, None, "3 tokens only"),
        ([9] * 4, owned[:1], None, "lies elsewhere"),
        ([9] * 8, fresh * 2, None, "twice"),
        ([9] * 4, [15], None, "is free"),
        ([9] * 5, fresh, "state", "snapshot"),  # inside of a page
        ([], [], "state", "snapshot"),
    ]
    for tokens, pages, snapshot, reason in wrong:
        with pytest.raises(ValueError, match=reason):
            cache.insert((), tokens, pages, snapshot)
    assert cache.stats() == before
    cache.pool.free_pages(fresh)
    cache.check_integrity(idle=True)


def test_statistics() -> None:
    cache = make()
    keep(cache, list(range(8)))
    cache.match((), list(range(10)))
    cache.match((), [7] * 10)
    cache.match((), list(range(10)), record=False)
    stats = cache.stats()
    assert (stats.lookups, stats.hits, stats.misses) == (2, 1, 1)
    assert (stats.lookup_tokens, stats.hit_tokens) == (20, 8)
    assert (stats.inserted_pages, stats.cached_pages, stats.free_pages) == (2, 2, 14)


# Names of pages


def test_page_keys_name_contents() -> None:
    cache = make(128)
    rng = random.Random(2)
    prompts = [[rng.randrange(2) for _ in range(24)] for _ in range(6)]
    for namespace in ((), ("adapter", 3, (0.5, None))):
        for prompt in prompts:
            keep(cache, prompt, namespace)
    names = {node.key for node in cache.nodes()}
    assert len(names) == cache.stats().cached_pages  # no two the same
    for prompt in prompts:
        assert set(page_keys((), prompt, SIZE)) <= names
    node = cache.match((), prompts[0]).node
    assert node is not None and node.key == list(page_keys((), prompts[0], SIZE))[-1]
    assert list(page_keys((1,), prompts[0], SIZE)) != list(page_keys(("1",), prompts[0], SIZE))


def test_a_namespace_that_another_run_cannot_know_has_no_name() -> None:
    with pytest.raises(TypeError, match="object"):
        list(page_keys((1, (object(),)), [0] * 4, SIZE))


def test_long_chains_have_names() -> None:
    cache = make(4000)
    keep(cache, [0] * 4 * 3000)
    node = cache.match((), [0] * 4 * 3000).node
    assert node is not None and len(node.key) == 40


# The twin


def test_the_naive_cache_never_hits() -> None:
    naive: PrefixCache = NaiveCache(SIZE)
    radix: PrefixCache = make()
    for cache in (naive, radix):
        assert keep(cache, [0] * 8) == (0 if cache is naive else 2)
        match = cache.match((), [0] * 8)
        assert match.num_tokens == (0 if cache is naive else 8)
        cache.lock(match)
        cache.unlock(match)
        pages = cache.allocate(1)
        inserted = cache.insert((), [0] * 4, pages)
        assert inserted.new == [] and inserted.duplicates == pages
        cache.evict(3)
        cache.clear()
        cache.check_integrity()
    assert naive.stats().lookups == 1 and naive.stats().hits == 0
    assert naive.insert((), [0] * 4, [7]).duplicates == [7]
