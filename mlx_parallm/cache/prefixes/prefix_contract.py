"""The contract of a prefix cache, and a NaiveCache that never hits.

Who owns pages when:

- A cache holds one reference to each of its pages and gives it back on eviction.
- `allocate` gives pages to the caller. `insert` takes over those it calls new;
  the duplicates stay the caller's, who frees them. `store` does all of that.
- A match owns nothing. `lock` keeps its pages in the cache until `unlock`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlx_parallm.cache.prefixes.radix_node import Namespace, Node

__all__ = [
    "PAGE_SIZE",
    "CacheStats",
    "Inserted",
    "Match",
    "NaiveCache",
    "Namespace",
    "Node",
    "PrefixCache",
    "Write",
]  # fmt: skip

PAGE_SIZE = 16
Write = Callable[[list[int], int], None]


@dataclass(frozen=True, eq=False, slots=True)
class Match:
    """The longest cached prefix.

    Attributes:
        num_tokens: a multiple of the page size; 0 is a miss.
        pages: one per page_size tokens.
        node: the last page's; None for a miss.
        snapshot: the state behind num_tokens tokens, where one is stored.
    """

    num_tokens: int = 0
    pages: list[int] = field(default_factory=list)
    node: Node | None = None
    snapshot: Any = None


@dataclass(frozen=True, slots=True)
class Inserted:
    """What became of the pages given to `insert`.

    Attributes:
        new: the tree owns them now.
        duplicates: others hold the same tokens already; the caller frees these.
        snapshot_kept: whether the snapshot given was stored.
    """

    new: list[int] = field(default_factory=list)
    duplicates: list[int] = field(default_factory=list)
    snapshot_kept: bool = False


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Counters since the start, and the state now.

    Attributes:
        lookups, hits: recorded matches, and those that found something.
        lookup_tokens, hit_tokens: tokens asked for and found.
        inserted_pages, evicted_pages: pages that came and went.
        cached_pages, free_pages, total_pages, snapshots, locked: now.
    """

    lookups: int = 0
    hits: int = 0
    lookup_tokens: int = 0
    hit_tokens: int = 0
    inserted_pages: int = 0
    evicted_pages: int = 0
    cached_pages: int = 0
    free_pages: int = 0
    total_pages: int = 0
    snapshots: int = 0
    locked: int = 0

    @property
    def misses(self) -> int:
        """Lookups that found nothing."""
        return self.lookups - self.hits


class PrefixCache(Protocol):
    """The contract of a prefix cache; see RadixAttentionCache."""

    page_size: int

    def match(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        *,
        limit: int | None = None,
        need_snapshot: bool = False,
        record: bool = True,
    ) -> Match: ...

    def lock(self, match: Match) -> None: ...

    def unlock(self, match: Match) -> None: ...

    def allocate(self, num_pages: int) -> list[int]: ...

    def insert(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        pages: Sequence[int],
        snapshot: Any = None,
    ) -> Inserted: ...

    def store(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        write: Write,
        make_snapshot: Callable[[], Any] | None = None,
        available_from: int = 0,
    ) -> int: ...

    def evict(self, num_pages: int) -> list[int]: ...

    def clear(self) -> None: ...

    def check_integrity(self, idle: bool = False) -> None: ...

    def stats(self) -> CacheStats: ...


class NaiveCache:
    """A cache that never hits: what tests compare the real one with."""

    def __init__(self, page_size: int = PAGE_SIZE) -> None:
        self.page_size = page_size
        self._lookups = self._lookup_tokens = 0

    def match(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        *,
        limit: int | None = None,
        need_snapshot: bool = False,
        record: bool = True,
    ) -> Match:
        """A miss."""
        self._lookups += record
        self._lookup_tokens += len(tokens) if record else 0
        return Match()

    def lock(self, match: Match) -> None:
        """Nothing to keep."""

    def unlock(self, match: Match) -> None:
        """Nothing was kept."""

    def allocate(self, num_pages: int) -> list[int]:
        """There are no pages."""
        return []

    def insert(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        pages: Sequence[int],
        snapshot: Any = None,
    ) -> Inserted:
        """Nothing is taken over."""
        return Inserted(duplicates=list(pages))

    def store(
        self,
        namespace: Namespace,
        tokens: Sequence[int],
        write: Write,
        make_snapshot: Callable[[], Any] | None = None,
        available_from: int = 0,
    ) -> int:
        """Nothing is kept."""
        return 0

    def evict(self, num_pages: int) -> list[int]:
        """There is nothing to evict."""
        return []

    def clear(self) -> None:
        """There is nothing to forget."""

    def check_integrity(self, idle: bool = False) -> None:
        """Nothing can be wrong."""

    def stats(self) -> CacheStats:
        """Lookups only."""
        return CacheStats(lookups=self._lookups, lookup_tokens=self._lookup_tokens)
