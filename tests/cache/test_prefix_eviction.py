"""What the radix tree gives up first, and what it must not."""

from __future__ import annotations

from typing import Any

import pytest

from mlx_parallm.cache.prefixes.prefix_cache import (
    IntegrityError,
    Match,
)
from tests.cache.prefixes import keep, make


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
