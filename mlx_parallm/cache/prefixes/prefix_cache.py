"""The RadixAttentionCache: the radix tree, also by request id. No mlx here.

The engine uses the tree's own methods (match, lock, store, ...). The request
methods are for callers who keep K and V in pages only:

    cache.add_request("a", prompt)      # shares the cached prefix, allocates the rest
    storage.write_pages(...)            # the caller fills the new pages
    cache.publish_request("a")          # from now on others can share them
    cache.get_kv_cache("a", "k")
    cache.remove_request("a")
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mlx_parallm.cache.prefixes.page_pool import IntegrityError, PagePool, PagesExhaustedError
from mlx_parallm.cache.prefixes.prefix_contract import (
    PAGE_SIZE,
    CacheStats,
    Inserted,
    Match,
    NaiveCache,
    Namespace,
    PrefixCache,
    Write,
)
from mlx_parallm.cache.prefixes.radix_node import Node, page_keys
from mlx_parallm.cache.prefixes.radix_tree import RadixTree
from mlx_parallm.errors import InvalidRequestError, NotFoundError

__all__ = [
    "PAGE_SIZE",
    "CacheStats",
    "Inserted",
    "IntegrityError",
    "Match",
    "NaiveCache",
    "Namespace",
    "Node",
    "PagePool",
    "PagesExhaustedError",
    "PrefixCache",
    "RadixAttentionCache",
    "Write",
    "page_keys",
]


class PageStorage(Protocol):
    """What get_kv_cache reads from; PagedKVCache is one."""

    def gather_pages(
        self, page_ids: Sequence[int], seq_len: int, cache_type: str = "k", layer: int = 0
    ) -> Any:
        """(seq_len, heads, dim) of one layer."""


@dataclass(slots=True)
class _Request:
    """A request's pages: those up to `held` are the tree's, `private` its own."""

    namespace: Namespace
    tokens: list[int]
    pages: list[int]
    private: list[int]
    held: Match


class RadixAttentionCache(RadixTree):
    """A prefix cache over the pages of a pool. One thread only.

    Args:
        pool: where pages come from; others may take pages from it too.
        page_size: tokens a page.
        storage: holds what is in the pages; only get_kv_cache needs it.
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
        storage: PageStorage | None = None,
        max_snapshots: int | None = None,
        on_evict: Callable[[list[int], list[Any]], None] | None = None,
        spill: Callable[[list[Node]], None] | None = None,
    ) -> None:
        super().__init__(
            pool, page_size, max_snapshots=max_snapshots, on_evict=on_evict, spill=spill
        )
        self.storage = storage
        self._requests: dict[str, _Request] = {}

    def add_request(
        self, request_id: str, prompt_tokens: Sequence[int], namespace: Namespace = ()
    ) -> dict[str, Any]:
        """Give a request pages for its whole prompt: the cached prefix's, and new ones.

        Returns:
            request_id, num_tokens, page_size; pages, of which the first
            len(shared_pages) hold shared_tokens tokens already, and new_pages,
            which the caller fills.

        Raises:
            InvalidRequestError: the id is in use, or there are no tokens.
            PagesExhaustedError: not enough pages can be had; nothing was changed.
        """
        if request_id in self._requests:
            raise InvalidRequestError(f"request {request_id!r} has been added already")
        if not prompt_tokens:
            raise InvalidRequestError("a request has at least one token")
        match = self.match(namespace, prompt_tokens)
        self.lock(match)
        needed = -(-len(prompt_tokens) // self.page_size) - len(match.pages)
        private = self.allocate(needed)
        if len(private) < needed:
            self.pool.free_pages(private)
            self.unlock(match)
            raise PagesExhaustedError("Insufficient pages in KV cache")
        pages = match.pages + private
        self._requests[request_id] = _Request(
            namespace, list(prompt_tokens), pages, list(private), match
        )
        return {
            "request_id": request_id,
            "num_tokens": len(prompt_tokens),
            "page_size": self.page_size,
            "pages": list(pages),
            "shared_pages": list(match.pages),
            "shared_tokens": match.num_tokens,
            "new_pages": private,
        }

    def publish_request(self, request_id: str) -> int:
        """Let others share a request's full pages, now that they are written.

        Returns:
            how many pages the tree took over; those whose tokens it has already
            stay the request's own.

        Raises:
            NotFoundError: no such request.
        """
        request = self._request(request_id)
        full = len(request.tokens) // self.page_size
        tokens = request.tokens[: full * self.page_size]
        taken = set(self.insert(request.namespace, tokens, request.pages[:full]).new)
        request.private = [page for page in request.private if page not in taken]
        deeper = self.match(request.namespace, tokens, record=False)
        self.lock(deeper)
        self.unlock(request.held)
        request.held = deeper
        return len(taken)

    def remove_request(self, request_id: str) -> None:
        """Forget a request. Published pages stay for others; the rest is freed.

        Raises:
            NotFoundError: no such request.
        """
        request = self._request(request_id)
        del self._requests[request_id]
        self.unlock(request.held)
        self.pool.free_pages(request.private)

    def get_kv_cache(self, request_id: str, cache_type: str = "k", layer: int = 0) -> Any:
        """K ("k") or V ("v") of a request's prompt: (num_tokens, heads, dim).

        Raises:
            NotFoundError: no such request.
            RuntimeError: the cache was made without a storage.
        """
        request = self._request(request_id)
        if self.storage is None:
            raise RuntimeError("this cache keeps numbers only: it has no storage")
        return self.storage.gather_pages(request.pages, len(request.tokens), cache_type, layer)

    def _request(self, request_id: str) -> _Request:
        if request_id not in self._requests:
            raise NotFoundError(f"there is no request {request_id!r}")
        return self._requests[request_id]
