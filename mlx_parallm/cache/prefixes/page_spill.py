"""PageSpill: between the radix tree, the pages in memory and the pages on disk.

    disk = PageSpill(tree, cache, store)  # from now on evicted pages go to disk
    disk.restore(namespace, tokens)  # before tree.match: those on disk come back
    disk.close()  # all that are in memory go to disk

What cannot be kept or brought back is a miss later, never an error.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.prefixes.page_file import (
    FORMAT,
    PageFileError,
    Record,
    pack_arrays,
    pack_pages,
    page_layout,
    unpack_arrays,
    unpack_pages,
)
from mlx_parallm.cache.prefixes.page_store import PageStore
from mlx_parallm.cache.prefixes.pages import PagedKVCache
from mlx_parallm.cache.prefixes.prefix_cache import Namespace, Node, RadixAttentionCache, page_keys

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
    facts = [FORMAT, version("mlx-lm"), str(mx.default_device().type), page_size]
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
        agree: the smallest value of all ranks that hold the same prefixes, each on a disk.
    """

    def __init__(
        self,
        tree: RadixAttentionCache,
        cache: PagedKVCache,
        store: PageStore,
        *,
        need_snapshot: bool = False,
        agree: Callable[[int], int] = lambda value: value,
    ) -> None:
        self._agree = agree
        self.tree = tree
        self.cache = cache
        self.store = store
        self.need_snapshot = need_snapshot
        self._layout = page_layout(cache)
        tree.spill = self.spill

    def spill(self, nodes: Sequence[Node], wait: bool = False) -> None:
        """Keep nodes' pages and snapshots on disk, where they are not there yet.

        Args:
            wait: for a slow disk, instead of leaving pages out.

        Raises:
            TypeError: a snapshot is not made of arrays; see pack_arrays.
        """
        keys = {node: key for node in nodes if (key := _key(node)) is not None}
        new = [node for node, key in keys.items() if not self.store.touch(key)]
        records = pack_pages(self.cache, [node.page for node in new])
        for node, record in zip(new, records, strict=True):
            self.store.put(keys[node], record, wait)
        for node, key in keys.items():
            if node.snapshot is not None and not self.store.touch(_state(key)):
                self.store.put(_state(key), pack_arrays(node.snapshot), wait)

    def restore(self, namespace: Namespace, tokens: Sequence[int], limit: int | None = None) -> int:
        """Bring the pages that continue the cached prefix back from disk.

        Args:
            limit: tokens that can be of use at most, as for `match`.

        Returns:
            tokens brought back; match finds them now.
        """
        tokens = tokens if limit is None else tokens[:limit]
        held = self._held(namespace, tokens)
        cached = self.tree.match(namespace, tokens, record=False)
        keys = self._keys_on_disk(namespace, tokens, len(cached.pages))
        records = self._read(keys[len(cached.pages) :])
        end, snapshot = self._agree(len(cached.pages) + len(records)), None
        size = self.tree.page_size
        if self.need_snapshot:
            end, snapshot = self._agreed_snapshot(keys[:end], held // size)
        records = records[: max(0, end - len(cached.pages))]
        if end * size <= held:
            return 0
        self.tree.store(
            namespace,
            tokens[: end * size],
            lambda pages, _: self._fill(pages, records),
            None if snapshot is None else lambda: snapshot,
        )
        return self._held(namespace, tokens) - held

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

    def close(self) -> None:
        """Keep everything, and stop writing."""
        self.save_all()
        self.tree.spill = None
        self.store.close()

    def _held(self, namespace: Namespace, tokens: Sequence[int]) -> int:
        """Tokens that a match would give."""
        match = self.tree.match(namespace, tokens, need_snapshot=self.need_snapshot, record=False)
        return match.num_tokens

    def _keys_on_disk(self, namespace: Namespace, tokens: Sequence[int], cached: int) -> list[str]:
        """Keys of the `cached` pages and of those on disk behind them that are of use."""
        keys: list[str] = []
        try:
            for key in page_keys(namespace, tokens, self.tree.page_size):
                if len(keys) >= cached and key not in self.store:
                    break
                keys.append(key)
        except TypeError:
            return []  # the namespace means something in this process only
        while self.need_snapshot and keys and _state(keys[-1]) not in self.store:
            keys.pop()
        return keys

    def _read(self, keys: list[str]) -> list[Record]:
        """Pages up to the first one that cannot be used."""
        records: list[Record] = []
        for key in keys:
            record = self.store.get(key)
            if record is None:
                break
            if record.layout != self._layout:
                log.warning("page %s on disk has other layers than the model", key)
                break
            records.append(record)
        return records

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

    def _agreed_snapshot(self, keys: list[str], held: int) -> tuple[int, Any]:
        """As _last_snapshot, of those that all ranks have."""
        while True:
            end, snapshot = self._last_snapshot(keys, held)
            least, most = self._agree(end), -self._agree(-end)
            if least == most:
                return end, snapshot
            keys = keys[:least]

    def _fill(self, pages: list[int], records: list[Record]) -> None:
        self.cache.write_all(pages, unpack_pages(self.cache, records[: len(pages)]))


def _key(node: Node) -> str | None:
    try:
        return node.key
    except TypeError:
        return None  # its namespace means something in this process only


def _state(key: str) -> str:
    return f"{key}-state"
