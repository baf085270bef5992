"""The RadixTree: which pages hold which prefix. No mlx here.

A tree over token ids in blocks of one page, so that nodes never have to be
split. Everything besides tokens that changes K and V (adapter, memories,
settings) is the namespace, the tree's root. Only leaves are evicted, so a lock
on a node keeps all before it as well. Who owns pages: prefix_contract.py.

The idea is SGLang's RadixAttention (arXiv 2312.07104).
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mlx_parallm.cache.prefixes.page_pool import IntegrityError, PagePool
from mlx_parallm.cache.prefixes.prefix_contract import (
    PAGE_SIZE,
    CacheStats,
    Inserted,
    Match,
    Namespace,
    Write,
)
from mlx_parallm.cache.prefixes.radix_node import Node


class RadixTree:
    """A tree of prefixes over the pages of a pool. One thread only; stats from any.

    Args:
        pool: where pages come from; others may take pages from it too.
        page_size: tokens a page.
        max_snapshots: snapshots held at most; the least recently used one goes.
        on_evict: called with (pages, snapshots) that left the tree, while the
            pages still hold their contents.
        spill: called before that with the nodes, to keep them elsewhere.
    """

    def __init__(
        self,
        pool: PagePool,
        page_size: int = PAGE_SIZE,
        *,
        max_snapshots: int | None = None,
        on_evict: Callable[[list[int], list[Any]], None] | None = None,
        spill: Callable[[list[Node]], None] | None = None,
    ) -> None:
        if page_size < 1:
            raise ValueError(f"page_size is {page_size}")
        self.pool = pool
        self.page_size = page_size
        self.max_snapshots = max_snapshots
        self.on_evict = on_evict
        self.spill = spill
        self._roots: dict[Namespace, Node] = {}
        self._by_page: dict[int, Node] = {}
        self._with_snapshot: OrderedDict[int, Node] = OrderedDict()  # least recent first
        self._leaves: list[tuple[int, int, Node]] = []  # a heap; see _oldest_leaf
        self._clock = 0
        self._serials = itertools.count()
        self._locked = 0
        self._lookups = self._hits = self._lookup_tokens = self._hit_tokens = 0
        self._inserted = self._evicted = 0

    # Reading

    def match(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        *,
        limit: int | None = None,
        need_snapshot: bool = False,
        record: bool = True,
    ) -> Match:
        """The longest cached prefix of `tokens`.

        Args:
            namespace: what else K and V depend on; hashable.
            limit: tokens to match at most (a prompt's last one is always computed).
            need_snapshot: end where a snapshot is stored.
            record: count it in the statistics.
        """
        path = self._walk(namespace, tokens, limit)
        while need_snapshot and path and path[-1].snapshot is None:
            path.pop()
        num_tokens = len(path) * self.page_size
        if record:
            self._lookups += 1
            self._lookup_tokens += len(tokens)
            self._hits += bool(path)
            self._hit_tokens += num_tokens
        if not path:
            return Match()
        self._touch(path[-1])
        return Match(num_tokens, [node.page for node in path], path[-1], path[-1].snapshot)

    def _walk(
        self, namespace: Namespace, tokens: Sequence[int], limit: int | None = None
    ) -> list[Node]:
        node = self._roots.get(namespace)
        path: list[Node] = []
        if node is None:
            return path
        size = self.page_size
        stop = len(tokens) if limit is None else min(limit, len(tokens))
        for start in range(0, stop - size + 1, size):
            node = node.children.get(tuple(tokens[start : start + size]))
            if node is None:
                break
            path.append(node)
        return path

    def _touch(self, node: Node) -> None:
        # Its ancestors count as used too: _detach hands them the stamp.
        self._clock += 1
        node.last_used = self._clock
        if node.snapshot is not None:
            self._with_snapshot.move_to_end(node.page)

    def lock(self, match: Match) -> None:
        """Keep a match's pages and snapshot in the tree until `unlock`.

        Raises:
            ValueError: they were evicted since the match.
        """
        if match.node is not None:
            self._lock(match.node)

    def _lock(self, node: Node) -> None:
        if not node.alive:
            raise ValueError("the match was evicted before it was locked")
        self._locked += not node.locks
        node.locks += 1

    def unlock(self, match: Match) -> None:
        """Undo one `lock`.

        Raises:
            ValueError: it was not locked.
        """
        if match.node is not None:
            self._unlock(match.node)

    def _unlock(self, node: Node) -> None:
        if node.locks < 1:
            raise ValueError("the match is not locked")
        node.locks -= 1
        self._locked -= not node.locks
        self._queue(node)

    # Writing

    def allocate(self, num_pages: int) -> list[int]:
        """Up to num_pages pages for the caller, evicting others for them as needed.

        Fewer, perhaps none, where the rest is locked or someone else's.
        """
        self.evict(num_pages - self.pool.num_free)
        return self.pool.allocate_pages(min(num_pages, self.pool.num_free)) or []

    def insert(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        pages: Sequence[int],
        snapshot: Any = None,
    ) -> Inserted:
        """Keep pages that have been written.

        Args:
            pages: page i holds tokens [i * page_size, (i + 1) * page_size). Those
                that a match gave may be among them, in their places.
            snapshot: state behind the last page's last token.

        Raises:
            ValueError: fewer tokens than the pages hold, a page that is free or
                lies elsewhere in the tree, or a snapshot at no page boundary.
                Nothing was changed.
        """
        size = self.page_size
        used = tokens[: len(pages) * size]
        if len(used) < len(pages) * size:
            raise ValueError(f"{len(pages)} pages cannot hold {len(tokens)} tokens only")
        if snapshot is not None and (not pages or len(used) != len(tokens)):
            raise ValueError("a snapshot must lie behind the last token of a page")
        if not pages:
            return Inserted()
        path = self._walk(namespace, used)
        new = list(pages[len(path) :])
        given = zip(pages, path, strict=False)
        duplicates = [page for page, node in given if page != node.page]
        self._require_foreign([*new, *duplicates])
        node = path[-1] if path else self._root(namespace)
        for place, page in enumerate(new, start=len(path)):
            node = self._append(node, tuple(used[place * size : (place + 1) * size]), page)
        kept = snapshot is not None and node.snapshot is None
        if kept:
            node.snapshot = snapshot
            self._with_snapshot[node.page] = node
        self._touch(node)
        self._queue(node)
        if kept:
            self._trim_snapshots()
        self._inserted += len(new)
        return Inserted(new, duplicates, kept)

    def _require_foreign(self, pages: list[int]) -> None:
        if len(set(pages)) < len(pages):
            raise ValueError("a page is given twice")
        for page in pages:
            if page in self._by_page:
                raise ValueError(f"page {page} lies elsewhere in the tree")
            if not self.pool.references(page):
                raise ValueError(f"page {page} is free")

    def _root(self, namespace: Namespace) -> Node:
        if namespace not in self._roots:
            self._roots[namespace] = Node(None, (), -1, namespace)
        return self._roots[namespace]

    def _append(self, parent: Node, tokens: tuple[int, ...], page: int) -> Node:
        node = Node(parent, tokens, page, parent.namespace)
        node.serial = next(self._serials)
        parent.children[tokens] = node
        self._by_page[page] = node
        return node

    def store(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        write: Write,
        make_snapshot: Callable[[], Any] | None = None,
        available_from: int = 0,
    ) -> int:
        """Keep the full pages of `tokens` that are not cached yet, as many as fit.

        Args:
            write: called at most once with (pages, start): fill these pages with
                K and V of the tokens from `start` on. If it raises, nothing is kept.
            make_snapshot: called if all pages are cached then and len(tokens) is a
                multiple of the page size: the state behind the last token.
            available_from: tokens before this one cannot be written any more (a
                sliding window has passed them); nothing is kept where they are
                missing, because they were never stored or are evicted again.

        Returns:
            how many pages were new.
        """
        path = self._walk(namespace, tokens)
        if len(path) * self.page_size < min(available_from, len(tokens)):
            return 0
        held = path[-1] if path else None
        if held is not None:
            self._lock(held)  # allocating must not evict what it continues
        try:
            pages = self.allocate(len(tokens) // self.page_size - len(path))
            snapshot = self._fill(pages, path, tokens, write, make_snapshot)
            whole = [*(node.page for node in path), *pages]
            self.insert(namespace, tokens[: len(whole) * self.page_size], whole, snapshot)
        finally:
            if held is not None:
                self._unlock(held)
        return len(pages)

    def _fill(
        self,
        pages: list[int],
        path: list[Node],
        tokens: Sequence[int],
        write: Write,
        make_snapshot: Callable[[], Any] | None,
    ) -> Any:
        size = self.page_size
        end = (len(path) + len(pages)) * size
        try:
            if pages:
                write(pages, len(path) * size)
            if make_snapshot is None or not end or end != len(tokens) or self.max_snapshots == 0:
                return None
            stored = not pages and path[-1].snapshot is not None
            return None if stored else make_snapshot()
        except BaseException:
            self.pool.free_pages(pages)
            raise

    # Eviction

    def evict(self, num_pages: int) -> list[int]:
        """Give back up to num_pages pages, least recently used leaves first.

        Locked pages and those before them stay.

        Returns:
            the pages that left the tree.
        """
        nodes: list[Node] = []
        while len(nodes) < num_pages and (node := self._oldest_leaf()) is not None:
            self._detach(node)
            nodes.append(node)
        return self._discard(nodes)

    def clear(self) -> None:
        """Evict everything that is not locked."""
        self.evict(len(self._by_page))

    def _oldest_leaf(self) -> Node | None:
        """Take the least recently used unlocked leaf off the heap.

        Each such leaf has one entry. Entries are not kept up to date: a stale one
        is dropped, or put back in its right place, when it comes up.
        """
        while self._leaves:
            stamp, _, node = heapq.heappop(self._leaves)
            node.queued = False
            if not _evictable(node):
                continue
            if node.last_used == stamp:
                return node
            self._queue(node)
        return None

    def _queue(self, node: Node) -> None:
        if _evictable(node) and not node.queued:
            node.queued = True
            heapq.heappush(self._leaves, (node.last_used, node.serial, node))

    def _detach(self, node: Node) -> None:
        parent = node.parent
        assert parent is not None
        del parent.children[node.tokens]
        del self._by_page[node.page]
        node.alive = False
        if parent.parent is None:
            self._prune_root(parent)
            return
        parent.last_used = max(parent.last_used, node.last_used)
        self._queue(parent)

    def _prune_root(self, root: Node) -> None:
        if root.parent is None and not root.children:
            self._roots.pop(root.namespace, None)

    def _discard(self, nodes: list[Node]) -> list[int]:
        pages = [node.page for node in nodes]
        snapshots = [node.snapshot for node in nodes if node.snapshot is not None]
        for page in pages:
            self._with_snapshot.pop(page, None)
        self._evicted += len(pages)
        try:
            if nodes and self.spill is not None:
                self.spill(nodes)
            if nodes and self.on_evict is not None:
                self.on_evict(pages, snapshots)
        finally:
            self.pool.free_pages(pages)
        return pages

    def _trim_snapshots(self) -> None:
        limit = len(self._with_snapshot) if self.max_snapshots is None else self.max_snapshots
        while len(self._with_snapshot) > limit:
            node = next((n for n in self._with_snapshot.values() if not n.locks), None)
            if node is None:
                return
            del self._with_snapshot[node.page]
            snapshot, node.snapshot = node.snapshot, None
            if self.on_evict is not None:
                self.on_evict([], [snapshot])

    # Looking in

    def nodes(self) -> Iterator[Node]:
        """Every node but the roots, parents before children."""
        open_nodes = list(self._roots.values())
        while open_nodes:
            node = open_nodes.pop()
            open_nodes.extend(node.children.values())
            if node.parent is not None:
                yield node

    def stats(self) -> CacheStats:
        """Counters and state."""
        return CacheStats(
            lookups=self._lookups,
            hits=self._hits,
            lookup_tokens=self._lookup_tokens,
            hit_tokens=self._hit_tokens,
            inserted_pages=self._inserted,
            evicted_pages=self._evicted,
            cached_pages=len(self._by_page),
            free_pages=self.pool.num_free,
            total_pages=self.pool.num_pages,
            snapshots=len(self._with_snapshot),
            locked=self._locked,
        )

    def check_integrity(self, idle: bool = False) -> None:
        """Raise IntegrityError unless tree, books and pool agree.

        Args:
            idle: no row runs, so nothing may be locked and every page that is
                used must be the tree's.
        """
        self.pool.check_integrity()
        nodes = list(self.nodes())
        found = {node.page: node for node in nodes}
        if len(found) < len(nodes):
            raise IntegrityError("a page is in the tree twice")
        if found != self._by_page:
            raise IntegrityError(f"{len(found)} pages in tree, {len(self._by_page)} in books")
        for node in found.values():
            self._check(node)
        if any(not root.children for root in self._roots.values()):
            raise IntegrityError("a namespace without pages is kept")
        with_snapshot = {page for page, node in found.items() if node.snapshot is not None}
        if with_snapshot != set(self._with_snapshot):
            raise IntegrityError("the snapshots in the tree are not those in the books")
        if self._locked != sum(node.locks > 0 for node in found.values()):
            raise IntegrityError("the count of locked nodes is wrong")
        if idle and self._locked:
            raise IntegrityError(f"{self._locked} nodes are locked by nobody")
        if idle and self.pool.num_used != len(found):
            raise IntegrityError(
                f"{self.pool.num_free} free + {len(found)} cached pages are not "
                f"all {self.pool.num_pages}"
            )

    def _check(self, node: Node) -> None:
        if not node.alive or len(node.tokens) != self.page_size or node.locks < 0:
            raise IntegrityError(f"the node of page {node.page} is damaged")
        if node.parent is None or node.parent.children.get(node.tokens) is not node:
            raise IntegrityError(f"the node of page {node.page} is not its parent's child")
        if not self.pool.references(node.page):
            raise IntegrityError(f"page {node.page} is in the tree and free")
        if _evictable(node) and not node.queued:
            raise IntegrityError(f"page {node.page} could never be evicted")


def _evictable(node: Node) -> bool:
    return node.alive and not node.children and not node.locks and node.parent is not None
