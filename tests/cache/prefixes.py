"""Prefix caches without a model."""

from __future__ import annotations

from typing import Any

from mlx_parallm.cache.prefixes.prefix_cache import (
    PagePool,
    PrefixCache,
    RadixAttentionCache,
)

SIZE = 4


def make(num_pages: int = 16, **options: Any) -> RadixAttentionCache:
    return RadixAttentionCache(PagePool(num_pages), SIZE, **options)


def keep(cache: PrefixCache, tokens: list[int], namespace: tuple[Any, ...] = ()) -> int:
    return cache.store(namespace, tokens, lambda pages, start: None)
