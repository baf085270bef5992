"""Matches that end at snapshots of states."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cache.prefixes import keep, make


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
