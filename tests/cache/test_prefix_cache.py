"""The radix tree, without a model: contract, ownership, integrity."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import Any

import pytest

from mlx_parallm.cache.prefixes.prefix_cache import (
    IntegrityError,
    Match,
    NaiveCache,
    PagePool,
    PagesExhaustedError,
    PrefixCache,
    RadixAttentionCache,
    page_keys,
)
from mlx_parallm.errors import InvalidRequestError, NotFoundError

SIZE = 4


def make(num_pages: int = 16, **options: Any) -> RadixAttentionCache:
    return RadixAttentionCache(PagePool(num_pages), SIZE, **options)


def keep(cache: PrefixCache, tokens: list[int], namespace: tuple[Any, ...] = ()) -> int:
    return cache.store(namespace, tokens, lambda pages, start: None)


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


# Eviction


def test_the_least_recently_used_leaf_goes_first() -> None:
    cache = make(4)
    prompts = [[i] * 4 for i in range(4)]
    for prompt in prompts:
        keep(cache, prompt)
    cache.match((), prompts[0])
    keep(cache, [9] * 4)
    hits = [cache.match((), p).num_tokens > 0 for p in prompts]
    assert hits == [True, False, True, True]


def test_a_used_child_keeps_its_parent_young() -> None:
    cache = make(4)
    keep(cache, [0] * 8)
    keep(cache, [1] * 8)
    cache.match((), [0] * 8)
    evicted = cache.evict(2)
    assert len(evicted) == 2
    assert cache.match((), [1] * 8).num_tokens == 0
    assert cache.match((), [0] * 8).num_tokens == 8


def test_a_parent_is_as_young_as_the_child_it_lost() -> None:
    cache = make(3)
    keep(cache, [0] * 8)
    keep(cache, [1] * 4)
    cache.match((), [0] * 8)
    older = cache.match((), [1] * 4, record=False)
    cache.match((), [0] * 8)
    cache.lock(older)
    cache.evict(1)  # the child
    cache.unlock(older)
    assert cache.evict(1) == older.pages


def test_locked_pages_stay() -> None:
    cache = make(4)
    keep(cache, [0] * 12)
    match = cache.match((), [0] * 8)
    cache.lock(match)
    cache.lock(match)
    assert len(cache.evict(4)) == 1
    assert keep(cache, [1] * 12) == 2  # what is left
    cache.unlock(match)
    assert cache.evict(4) and cache.match((), [0] * 8).num_tokens == 8
    with pytest.raises(IntegrityError, match="locked by nobody"):
        cache.check_integrity(idle=True)
    cache.unlock(match)
    cache.clear()
    assert cache.pool.num_free == 4
    cache.check_integrity(idle=True)


def test_locks_are_checked() -> None:
    cache = make()
    keep(cache, [0] * 4)
    match = cache.match((), [0] * 4)
    with pytest.raises(ValueError, match="not locked"):
        cache.unlock(match)
    cache.clear()
    with pytest.raises(ValueError, match="evicted"):
        cache.lock(match)
    miss = Match()
    cache.lock(miss)
    cache.unlock(miss)
    cache.check_integrity(idle=True)


def test_storing_never_evicts_what_it_continues() -> None:
    cache = make(3)
    keep(cache, [0] * 8)
    assert keep(cache, [0] * 16) == 1
    assert cache.match((), [0] * 16).num_tokens == 12
    cache.check_integrity(idle=True)


def test_a_failed_write_keeps_nothing() -> None:
    cache = make()
    keep(cache, [0] * 4)

    def fail(pages: list[int], start: int) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.store((), [0] * 12, fail)
    assert cache.match((), [0] * 12).num_tokens == 4
    cache.check_integrity(idle=True)


def test_what_a_window_has_passed_is_not_stored() -> None:
    cache = make()
    starts: list[int] = []

    def save(num_tokens: int, available_from: int) -> int:
        return cache.store(
            (), [0] * num_tokens, lambda pages, start: starts.append(start), None, available_from
        )

    assert save(8, 0) == 2 and save(12, 8) == 1
    assert save(20, 13) == 0  # the fourth page begins at 12, which is gone
    cache.evict(2)  # leaves the first page
    assert save(12, 5) == 0 and save(12, 4) == 2
    assert starts == [0, 8, 4]
    cache.check_integrity(idle=True)


def test_callers_hear_of_evictions_before_the_pages_are_free() -> None:
    seen: list[tuple[str, list[Any]]] = []
    cache = make(4, on_evict=lambda pages, snapshots: seen.append(("gone", [pages, snapshots])))
    cache.spill = lambda nodes: seen.append(("spill", [cache.pool.references(nodes[0].page)]))
    keep(cache, [0] * 4)
    cache.store((), [0] * 8, lambda pages, start: None, lambda: "state")
    pages = cache.match((), [0] * 8).pages
    assert cache.evict(2) == pages[::-1]
    assert seen == [("spill", [1]), ("gone", [pages[::-1], ["state"]])]
    assert cache.pool.num_free == 4


def test_a_failing_spill_leaks_nothing() -> None:
    cache = make(4)
    keep(cache, [0] * 8)

    def fail(nodes: list[Any]) -> None:
        raise OSError("disk")

    cache.spill = fail
    with pytest.raises(OSError, match="disk"):
        cache.evict(1)
    assert cache.pool.num_free == 3
    cache.check_integrity(idle=True)


# Snapshots


def test_a_match_can_end_at_a_snapshot_only() -> None:
    cache = make()
    cache.store((), [0] * 8, lambda pages, start: None, lambda: "at 8")
    keep(cache, [0] * 16)
    assert cache.match((), [0] * 16).num_tokens == 16
    match = cache.match((), [0] * 16, need_snapshot=True)
    assert (match.num_tokens, match.snapshot) == (8, "at 8")
    assert cache.match((), [0] * 16, limit=7, need_snapshot=True).node is None
    # Later, in the middle of what is cached already:
    assert cache.store((), [0] * 12, lambda pages, start: None, lambda: "at 12") == 0
    assert cache.match((), [0] * 16, need_snapshot=True).snapshot == "at 12"


def test_a_snapshot_is_made_only_where_it_is_kept() -> None:
    made: list[str] = []

    def snapshot() -> str:
        made.append("state")
        return "state"

    cache = make(2)
    for tokens in ([0] * 9, [0] * 3, [0] * 8, [0] * 8):
        cache.store((), tokens, lambda pages, start: None, snapshot)
    assert made == ["state"]  # not inside of a page, not without pages, not twice
    cache.clear()
    cache.store((), [1] * 12, lambda pages, start: None, snapshot)
    assert made == ["state"]  # the third page did not fit
    nothing = make(max_snapshots=0)
    nothing.store((), [0] * 8, lambda pages, start: None, snapshot)
    assert made == ["state"] and nothing.stats().snapshots == 0


def test_a_failing_snapshot_leaks_nothing() -> None:
    cache = make()

    def fail() -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        cache.store((), [0] * 8, lambda pages, start: None, fail)
    cache.check_integrity(idle=True)
    assert cache.pool.num_used == 0


def test_snapshots_are_bounded_and_the_oldest_goes() -> None:
    gone: list[Any] = []
    cache = make(max_snapshots=2, on_evict=lambda pages, snapshots: gone.extend(snapshots))

    def put(value: int) -> None:
        cache.store((), [value] * 4, lambda pages, start: None, lambda: value)

    put(0)
    put(1)
    cache.match((), [0] * 4, need_snapshot=True)
    put(2)
    assert gone == [1]
    assert cache.match((), [1] * 4).num_tokens == 4
    assert cache.match((), [1] * 4, need_snapshot=True).num_tokens == 0
    locked = [cache.match((), [value] * 4, need_snapshot=True) for value in (0, 2)]
    for match in locked:
        cache.lock(match)
    put(3)
    assert gone == [1, 3]  # the others are in use
    for match in locked:
        cache.unlock(match)
    cache.check_integrity(idle=True)


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


# Requests


class Storage:
    def gather_pages(
        self, page_ids: Any, seq_len: int, cache_type: str = "k", layer: int = 0
    ) -> Any:
        return (list(page_ids), seq_len, cache_type, layer)


def test_requests_share_published_pages() -> None:
    cache = make(storage=Storage())
    first = cache.add_request("a", list(range(10)))
    assert first["shared_tokens"] == 0 and len(first["new_pages"]) == 3
    assert cache.add_request("b", list(range(10)))["shared_tokens"] == 0  # not written yet
    assert cache.publish_request("a") == 2
    assert cache.publish_request("b") == 0  # too late
    third = cache.add_request("c", list(range(10)))
    assert third["shared_pages"] == first["pages"][:2] and len(third["new_pages"]) == 1
    assert cache.get_kv_cache("c", "v", 2) == (third["pages"], 10, "v", 2)
    for name in "ab":
        cache.remove_request(name)
    assert len(cache.evict(16)) == 0  # c stands on them
    assert cache.pool.num_used == 3
    cache.remove_request("c")
    cache.check_integrity(idle=True)
    assert cache.stats().cached_pages == 2


def test_requests_that_cannot_be() -> None:
    cache = make(4)
    keep(cache, [1] * 4)
    cache.add_request("a", [0] * 12)
    with pytest.raises(PagesExhaustedError):
        cache.add_request("b", [1] * 8)
    assert cache.stats().locked == 0 and cache.match((), [1] * 8).num_tokens == 4
    with pytest.raises(InvalidRequestError, match="already"):
        cache.add_request("a", [1])
    with pytest.raises(InvalidRequestError, match="one token"):
        cache.add_request("b", [])
    for method in (cache.remove_request, cache.publish_request, cache.get_kv_cache):
        with pytest.raises(NotFoundError):
            method("b")
    with pytest.raises(RuntimeError, match="no storage"):
        cache.get_kv_cache("a")
    cache.remove_request("a")
    cache.check_integrity(idle=True)
    assert cache.pool.num_free == 3


# Integrity


@pytest.mark.parametrize(
    "damage", ["child", "page", "books", "lock", "snapshot", "queue", "dead", "root", "count"]
)
def test_damage_is_noticed(damage: str) -> None:
    cache = make()
    cache.store((), [0] * 8, lambda pages, start: None, lambda: "state")
    cache.check_integrity(idle=True)
    node = cache.match((), [0] * 8).node
    assert node is not None and node.parent is not None
    if damage == "child":
        node.parent.children = {(1, 1, 1, 1): node}
    elif damage == "page":
        cache.pool.free_page(node.page)
    elif damage == "books":
        node.page = 9
    elif damage == "lock":
        node.locks = 1
    elif damage == "snapshot":
        node.snapshot = None
    elif damage == "queue":
        node.queued = False
    elif damage == "dead":
        node.alive = False
    elif damage == "root":
        cache._root(("empty",))
    else:
        cache.pool.allocate_page()  # free + cached == all no more
    with pytest.raises(IntegrityError):
        cache.check_integrity(idle=True)


def test_ten_thousand_operations_leak_nothing() -> None:
    rng = random.Random(4)
    cache = make(48, max_snapshots=5)
    locked: list[Match] = []
    held: list[int] = []
    requests: list[str] = []

    def prompt() -> list[int]:
        return [rng.randrange(2) for _ in range(SIZE * rng.randrange(9) + rng.randrange(SIZE))]

    def step(number: int) -> None:
        tokens, namespace = prompt(), ("adapter", rng.randrange(2))
        match rng.randrange(9):
            case 0 | 1:
                snapshot = (lambda: number) if rng.random() < 0.5 else None
                cache.store(namespace, tokens, lambda pages, start: None, snapshot)
            case 2 | 3:
                locked.append(cache.match(namespace, tokens, need_snapshot=rng.random() < 0.3))
                cache.lock(locked[-1])
            case 4 | 5 if locked:
                cache.unlock(locked.pop(rng.randrange(len(locked))))
            case 6:
                pages = cache.allocate(rng.randrange(len(tokens) // SIZE + 1))
                inserted = cache.insert(namespace, tokens, pages)
                cache.pool.free_pages(inserted.duplicates)
            case 7:
                cache.evict(rng.randrange(6))
                held.extend(cache.allocate(rng.randrange(3)))
                while len(held) > 6:
                    cache.pool.free_page(held.pop())
            case 8 if len(requests) > 3 or (requests and rng.random() < 0.5):
                name = requests.pop(rng.randrange(len(requests)))
                if rng.random() < 0.7:
                    cache.publish_request(name)
                cache.remove_request(name)
            case 8 if tokens:
                try:
                    cache.add_request(str(number), tokens, namespace)
                    requests.append(str(number))
                except PagesExhaustedError:
                    cache.check_integrity()

    for number in range(10_000):
        step(number)
        if number % 50 == 0:
            cache.check_integrity()
    assert cache.stats().evicted_pages > 1000 and cache.stats().hits > 500
    for match in locked:
        cache.unlock(match)
    for name in requests:
        cache.remove_request(name)
    cache.pool.free_pages(held)
    cache.check_integrity(idle=True)
    stats = cache.stats()
    assert stats.free_pages + stats.cached_pages == stats.total_pages == 48
    cache.clear()
    assert cache.pool.num_free == 48 and not cache._roots and not cache.stats().snapshots


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
