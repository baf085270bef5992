"""PageSpill: between the radix tree, the pages in memory and the pages on disk.

tree.spill = spill.spill           # evicted pages go to disk
spill.restore(namespace, tokens)   # before tree.match: those on disk come back
spill.save_all()                   # at the end: so do all that are in memory
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np

from mlx_parallm.engine.prefix_cache import Namespace, Node, RadixAttentionCache, page_keys
from mlx_parallm.models.page_file import (
    FORMAT,
    PageFileError,
    Record,
    pack_arrays,
    pack_pages,
    page_layout,
    unpack_arrays,
    unpack_pages,
)
from mlx_parallm.models.page_store import PageStore
from mlx_parallm.models.pages import PagedKVCache

log = logging.getLogger(__name__)
_SAVED_AT_ONCE = 64  # pages; bounds the memory that packing takes


def model_fingerprint(
    config: Mapping[str, Any], weights: Iterable[tuple[str, mx.array]], page_size: int
) -> str:
    """Names everything that a page's contents depend on, besides namespace and tokens.

    Reads all weights, about a second per gigabyte: two fine-tunes of one model
    have the same configuration, names and shapes.

    Args:
        config: the model's config.json.
        weights: as they compute, so with their dtype and quantisation.

    Returns:
        32 hexadecimal digits.
    """
    facts = [FORMAT, mlx_lm.__version__, str(mx.default_device().type), page_size]
    digest = hashlib.sha256(json.dumps([*facts, config], sort_keys=True, default=str).encode())
    for name, array in sorted(weights, key=lambda item: item[0]):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.array(array.reshape(-1).view(mx.uint8), copy=False).data)
    return digest.hexdigest()[:32]


class PageSpill:
    """Moves pages and snapshots between memory and disk. On the thread that owns mlx.

    Args:
        tree, cache: the prefix cache and what is in its pages.
        store: the pages on disk.
        need_snapshot: prefixes are of use up to a snapshot only (recurrent models).
    """

    def __init__(
        self,
        tree: RadixAttentionCache,
        cache: PagedKVCache,
        store: PageStore,
        *,
        need_snapshot: bool = False,
    ) -> None:
        self.tree = tree
        self.cache = cache
        self.store = store
        self.need_snapshot = need_snapshot
        self._layout = page_layout(cache)

    def spill(self, nodes: Sequence[Node], wait: bool = False) -> None:
        """Keep nodes' pages and snapshots on disk, where they are not there yet.

        Args:
            wait: for a slow disk, instead of leaving pages out.
        """
        keys = {node: key for node in nodes if (key := _key(node)) is not None}
        new = [node for node, key in keys.items() if key not in self.store]
        for node, record in zip(
            new, pack_pages(self.cache, [node.page for node in new]), strict=True
        ):
            self.store.put(keys[node], record, wait)
        for node, key in keys.items():
            if node.snapshot is not None and _state(key) not in self.store:
                self.store.put(_state(key), pack_arrays(node.snapshot), wait)

    def restore(self, namespace: Namespace, tokens: Sequence[int], limit: int | None = None) -> int:
        """Bring the pages that continue the cached prefix back from disk.

        Args:
            limit: tokens that can be of use at most, as for `match`.

        Returns:
            tokens brought back; match finds them now.
        """
        tokens = tokens if limit is None else tokens[:limit]
        held = self.tree.match(
            namespace, tokens, need_snapshot=self.need_snapshot, record=False
        ).num_tokens
        keys = self._keys(namespace, tokens)
        cached = self.tree.match(namespace, tokens, record=False)
        first = len(cached.pages)
        records: list[Record] = []
        for key in keys[first:]:
            record = self._get(key)
            if record is None:
                break
            records.append(record)
        end, snapshot = first + len(records), None
        if self.need_snapshot:
            end, snapshot = self._last_snapshot(keys[:end], held // self.tree.page_size)
        size = self.tree.page_size
        if end * size <= held:
            return 0
        self.tree.lock(cached)
        try:
            self.tree.store(
                namespace,
                tokens[: end * size],
                lambda pages, _: self._fill(pages, records),
                None if snapshot is None else lambda: snapshot,
            )
        finally:
            self.tree.unlock(cached)
        found = self.tree.match(
            namespace, tokens, need_snapshot=self.need_snapshot, record=False
        ).num_tokens
        return max(0, found - held)

    def save_all(self) -> None:
        """Keep everything that is in memory; what was used last is written last."""
        used: dict[Node, int] = {}
        children_first = list(self.tree.nodes())[::-1]
        for node in children_first:
            used[node] = max([node.last_used, *(used[n] for n in node.children.values())])
        ordered = sorted(children_first, key=used.__getitem__)
        for start in range(0, len(ordered), _SAVED_AT_ONCE):
            self.spill(ordered[start : start + _SAVED_AT_ONCE], wait=True)
        self.store.flush()

    def _keys(self, namespace: Namespace, tokens: Sequence[int]) -> list[str]:
        try:
            return list(page_keys(namespace, tokens, self.tree.page_size))
        except TypeError:
            return []  # it means something in this process only

    def _get(self, key: str) -> Record | None:
        record = self.store.get(key) if key in self.store else None
        if record is not None and record.layout != self._layout:
            log.warning("page %s on disk has other layers than the model", key)
            return None
        return record

    def _last_snapshot(self, keys: list[str], held: int) -> tuple[int, Any]:
        """(pages, snapshot) of the last snapshot on disk that lies behind `held` pages."""
        for end in range(len(keys), held, -1):
            key = _state(keys[end - 1])
            record = self.store.get(key) if key in self.store else None
            if record is not None:
                try:
                    return end, unpack_arrays(record)
                except PageFileError as error:
                    log.warning("snapshot %s on disk cannot be used: %s", key, error)
        return 0, None

    def _fill(self, pages: list[int], records: list[Record]) -> None:
        self.cache.write_all(pages, unpack_pages(self.cache, records[: len(pages)]))


def _key(node: Node) -> str | None:
    try:
        return node.key
    except TypeError:
        return None  # its namespace means something in this process only


def _state(key: str) -> str:
    return f"{key}-state"
