"""Requests' pages, and whether everything is accounted for."""

from __future__ import annotations

import random
from typing import Any

import pytest

from mlx_parallm.cache.prefixes.prefix_cache import (
    IntegrityError,
    Match,
    PagesExhaustedError,
)
from mlx_parallm.errors import InvalidRequestError, NotFoundError
from tests.cache.prefixes import SIZE, keep, make


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
