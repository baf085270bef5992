"""The radix tree against a dict of prefixes and against its naive twin, by hypothesis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlx_parallm.cache.prefixes.prefix_cache import (
    Match,
    NaiveCache,
    PagePool,
    PrefixCache,
    RadixAttentionCache,
)

SIZE = 2
Key = tuple[Any, ...]
NAMESPACES = st.sampled_from([(), ("adapter", 1)])
# Two tokens only, so that prompts often share a prefix.
PROMPTS = st.lists(st.integers(0, 1), max_size=10)


@dataclass
class Entry:
    """One page of the model: the tree must agree with it in every field."""

    page: int
    used: int
    locks: int = 0
    snapshot: int | None = None


class Model:
    """The same cache as a dict of prefixes, with nothing clever in it."""

    def __init__(self) -> None:
        self.entries: dict[tuple[Key, Key], Entry] = {}
        self.clock = 0

    def prefixes(self, namespace: Key, tokens: list[int]) -> list[tuple[Key, Key]]:
        stops = range(SIZE, len(tokens) + 1, SIZE)
        return [(namespace, tuple(tokens[:stop])) for stop in stops]

    def match(
        self, namespace: Key, tokens: list[int], need_snapshot: bool
    ) -> list[tuple[Key, Key]]:
        path = [key for key in self.prefixes(namespace, tokens) if key in self.entries]
        while need_snapshot and path and self.entries[path[-1]].snapshot is None:
            path.pop()
        return path

    def touch(self, path: list[tuple[Key, Key]]) -> None:
        self.clock += 1
        for key in path:
            self.entries[key].used = self.clock

    def oldest_leaf(self) -> tuple[Key, Key] | None:
        leaves = [
            key
            for key, entry in self.entries.items()
            if not entry.locks and not any(self._is_before(key, other) for other in self.entries)
        ]
        return min(leaves, key=lambda key: self.entries[key].used, default=None)

    def _is_before(self, key: tuple[Key, Key], other: tuple[Key, Key]) -> bool:
        namespace, tokens = other
        return key[0] == namespace and key[1] == tokens[:-SIZE]

    def evict(self, num_pages: int) -> list[int]:
        pages: list[int] = []
        while len(pages) < num_pages and (key := self.oldest_leaf()) is not None:
            pages.append(self.entries.pop(key).page)
        return pages


class PrefixCacheMachine(RuleBasedStateMachine):
    """Random operations; after each the tree equals the model, and all pages are accounted for."""

    @initialize(num_pages=st.integers(1, 12))
    def start(self, num_pages: int) -> None:
        self.evicted: list[int] = []
        self.cache = RadixAttentionCache(
            PagePool(num_pages), SIZE, on_evict=lambda pages, _: self.evicted.extend(pages)
        )
        self.model = Model()
        self.locked: list[tuple[Match, tuple[Key, Key] | None]] = []
        self.held: list[int] = []

    @rule(namespace=NAMESPACES, tokens=PROMPTS, need=st.booleans(), lock=st.booleans())
    def match(self, namespace: Key, tokens: list[int], need: bool, lock: bool) -> None:
        match = self.cache.match(namespace, tokens, need_snapshot=need)
        path = self.model.match(namespace, tokens, need)
        assert match.num_tokens == len(path) * SIZE
        assert match.pages == [self.model.entries[key].page for key in path]
        if path:
            assert match.snapshot == self.model.entries[path[-1]].snapshot
            self.model.touch(path)
        if lock:
            self.cache.lock(match)
            self.locked.append((match, path[-1] if path else None))
            if path:
                self.model.entries[path[-1]].locks += 1

    @precondition(lambda self: self.locked)
    @rule(data=st.data())
    def unlock(self, data: st.DataObject) -> None:
        match, key = self.locked.pop(data.draw(st.integers(0, len(self.locked) - 1)))
        self.cache.unlock(match)
        if key is not None:
            self.model.entries[key].locks -= 1

    @rule(namespace=NAMESPACES, tokens=PROMPTS, snapshot=st.none() | st.integers(0, 9))
    def store(self, namespace: Key, tokens: list[int], snapshot: int | None) -> None:
        model, keys = self.model, self.model.prefixes(namespace, tokens)
        held = model.match(namespace, tokens, need_snapshot=False)
        missing = keys[len(held) :]
        written: list[int] = []

        def write(pages: list[int], start: int) -> None:
            assert start == len(held) * SIZE
            written.extend(pages)

        make = None if snapshot is None else lambda: snapshot
        if held:
            model.entries[held[-1]].locks += 1
        self.evicted.clear()
        free = self.cache.pool.num_free
        new = self.cache.store(namespace, tokens, write, make)
        assert self.evicted == model.evict(len(missing) - free)
        if held:
            model.entries[held[-1]].locks -= 1
        assert new == len(written) == min(len(missing), free + len(self.evicted))
        for key, page in zip(missing, written, strict=False):
            model.entries[key] = Entry(page, 0)
        path = [*held, *missing[:new]]
        if not path:
            return
        model.touch(path)
        entry = model.entries[path[-1]]
        if path == keys and len(tokens) % SIZE == 0 and entry.snapshot is None:
            entry.snapshot = snapshot

    @rule(num_pages=st.integers(-1, 5))
    def evict(self, num_pages: int) -> None:
        assert self.cache.evict(num_pages) == self.model.evict(num_pages)

    @rule(num_pages=st.integers(0, 3))
    def take(self, num_pages: int) -> None:
        """Someone else takes pages from the same pool."""
        short = num_pages - self.cache.pool.num_free
        pages = self.cache.allocate(num_pages)
        self.model.evict(short)
        assert len(pages) <= num_pages
        self.held += pages

    @precondition(lambda self: self.held)
    @rule()
    def give_back(self) -> None:
        self.cache.pool.free_pages(self.held)
        self.held = []

    @invariant()
    def agrees(self) -> None:
        if not self._started:
            return
        cache, entries = self.cache, self.model.entries
        cache.check_integrity()
        assert cache.stats().cached_pages == len(entries)
        assert cache.pool.num_used == len(entries) + len(self.held)
        assert cache.stats().snapshots == sum(e.snapshot is not None for e in entries.values())

    @property
    def _started(self) -> bool:
        return hasattr(self, "model")

    def teardown(self) -> None:
        if not self._started:
            return
        for match, _ in self.locked:
            self.cache.unlock(match)
        self.cache.pool.free_pages(self.held)
        self.cache.check_integrity(idle=True)
        self.cache.clear()
        assert self.cache.pool.num_free == self.cache.pool.num_pages


TestPrefixCacheMachine = PrefixCacheMachine.TestCase
TestPrefixCacheMachine.settings = settings(max_examples=60, stateful_step_count=40)


def serve(
    cache: PrefixCache, storage: dict[int, list[Key]], namespace: Key, tokens: list[int]
) -> list[Key]:
    """What a row would hold: "K" of a token is all that it depends on."""
    match = cache.match(namespace, tokens, limit=len(tokens) - 1)
    cache.lock(match)
    row = [value for page in match.pages for value in storage[page]]
    assert len(row) == match.num_tokens
    row += [(namespace, *tokens[: i + 1]) for i in range(match.num_tokens, len(tokens))]

    def write(pages: list[int], start: int) -> None:
        for place, page in enumerate(pages):
            storage[page] = row[start + place * SIZE : start + (place + 1) * SIZE]

    cache.store(namespace, tokens, write)
    cache.unlock(match)
    return row


@given(
    st.integers(1, 10),
    st.lists(st.tuples(NAMESPACES, PROMPTS.filter(len)), min_size=1, max_size=40),
)
def test_radix_equals_naive(num_pages: int, requests: list[tuple[Key, list[int]]]) -> None:
    storage: dict[int, list[Key]] = {}

    def forget(pages: list[int]) -> None:
        for page in pages:
            del storage[page]

    pool = PagePool(num_pages, on_free=forget)
    radix, naive = RadixAttentionCache(pool, SIZE), NaiveCache(SIZE)
    for namespace, tokens in requests:
        assert serve(radix, storage, namespace, tokens) == serve(naive, {}, namespace, tokens)
    radix.check_integrity(idle=True)
    assert len(storage) == radix.stats().cached_pages
