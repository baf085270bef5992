"""Memories of one layer, and the exact search for those most similar to a query.

Source: Klett and Ahle, "Extended Mind Transformers", arXiv 2406.02332.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import TypeVar

import mlx.core as mx
import numpy as np

A = TypeVar("A", mx.array, np.ndarray)
Found = tuple[mx.array, mx.array] | tuple[np.ndarray, np.ndarray]

_MOST_SIMILARITIES = 1 << 23  # computed at once: larger arrays get fresh pages every time


class LayerMemory:
    """K and V of one layer's M memories, as retrieval and attention want them.

    Keys are held with length 1, beside their lengths: a product with a query is
    then the similarity (times the query's length), and with the key's length the score.

    Args:
        keys: (kv_heads, M, dim), rotated as the position policy wants them.
        values: (kv_heads, M, dim).

    Attributes:
        unit: (kv_heads, M, dim); norms: (kv_heads, M) float32.
    """

    def __init__(self, keys: mx.array, values: mx.array) -> None:
        exact = keys.astype(mx.float32)
        norms = mx.linalg.norm(exact, axis=-1)
        # A key of zeros is similar to nothing, and stays zeros.
        unit = exact / mx.maximum(norms, mx.array(1e-30))[..., None]
        # Half-precision products are slow on CPUs.
        self.unit = mx.contiguous(unit if _on_cpu() else unit.astype(keys.dtype))
        self.norms = norms
        self.values = mx.contiguous(values)

    @property
    def size(self) -> int:
        """M."""
        return self.unit.shape[1]

    @property
    def arrays(self) -> list[mx.array]:
        """Everything held."""
        return [self.unit, self.norms, self.values]

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.arrays)

    def nearest(self, queries: mx.array, k: int, threshold: float | None = None) -> Found:
        """The k memories most similar to each query, in no order.

        Args:
            queries: (kv_heads, N, dim).
            k: below M.
            threshold: similarities up to this get a score of -inf.

        Returns:
            (kv_heads, N, k) places for `values_at`, and scores (products with the keys) in
            float32. On a CPU both are on the host, and the queries have been evaluated.
        """
        heads, count, _ = queries.shape
        step = max(1, _MOST_SIMILARITIES // (heads * self.size))
        parts = [queries[:, at : at + step] for at in range(0, count, step)]
        if _on_cpu():
            on_host = [self._nearest_on_host(part, k, threshold) for part in parts]
            return _joined(on_host, np.concatenate)
        return _joined([self._nearest(part, k, threshold) for part in parts], mx.concatenate)

    def products(self, queries: mx.array) -> mx.array:
        """(kv_heads, N, M) float32 products of queries with all unit keys."""
        unit = self.unit
        if unit.dtype != mx.float32:
            queries, unit = queries.astype(mx.float32), unit.astype(mx.float32)
        return queries @ unit.swapaxes(-1, -2)

    def _nearest_on_host(
        self, queries: mx.array, k: int, threshold: float | None
    ) -> tuple[np.ndarray, np.ndarray]:
        # BLAS computes this product faster than its transpose.
        lazy = self.unit @ queries.swapaxes(-1, -2)
        mx.eval(lazy)
        ids, products = largest_on_host(np.asarray(lazy), k)
        places = ids + self._first
        scores = products * self._host_norms.take(places)
        if threshold is not None:
            least = threshold * np.array(mx.linalg.norm(queries, axis=-1, keepdims=True))
            scores = np.where(products > least, scores, np.float32(-np.inf))
        return places, scores

    def _nearest(
        self, queries: mx.array, k: int, threshold: float | None
    ) -> tuple[mx.array, mx.array]:
        products = queries.astype(self.unit.dtype) @ self.unit.swapaxes(-1, -2)
        ids, best = largest(products, k)
        places = ids.astype(mx.int32) + mx.array(self._first)
        exact = queries.astype(mx.float32)
        if products.dtype != mx.float32:
            # The ranking may use rounded keys, the scores may not.
            keys = mx.flatten(self.unit, 0, 1)[places].astype(mx.float32)
            best = (keys * exact[:, :, None]).sum(axis=-1)
        scores = best * self.norms.reshape(-1)[places]
        if threshold is not None:
            scores = above(threshold, exact, best, scores)
        return places, scores

    def values_at(self, places: mx.array | np.ndarray) -> mx.array:
        """(..., dim) values in float32 at places that `nearest` found."""
        if isinstance(places, np.ndarray) and self.values.dtype == mx.float32:
            return mx.array(self._host_values.take(places, axis=0))
        return mx.flatten(self.values, 0, 1)[mx.array(places)].astype(mx.float32)

    @cached_property
    def _host_values(self) -> np.ndarray:
        """(kv_heads * M, dim), a view of `values`."""
        return np.asarray(self.values).reshape(-1, self.values.shape[-1])

    @cached_property
    def _first(self) -> np.ndarray:
        """(kv_heads, 1, 1), each head's first place."""
        heads, size = self.norms.shape
        return (np.arange(heads, dtype=np.int32) * size)[:, None, None]

    @cached_property
    def _host_norms(self) -> np.ndarray:
        return np.array(self.norms).reshape(-1)


def above(threshold: float, queries: mx.array, products: mx.array, scores: mx.array) -> mx.array:
    """Scores; -inf where the similarity is not above the threshold."""
    lengths = mx.linalg.norm(queries, axis=-1, keepdims=True)
    # Not by adding a large negative number: half precision would make NaN of it.
    return mx.where(products > threshold * lengths, scores, -mx.inf)


def _joined(parts: list[tuple[A, A]], concatenate: Callable[..., A]) -> tuple[A, A]:
    """Parts of queries, one after the other."""
    if len(parts) == 1:
        return parts[0]
    places, scores = zip(*parts, strict=True)
    return concatenate(list(places), axis=1), concatenate(list(scores), axis=1)


def largest(values: mx.array, k: int) -> tuple[mx.array, mx.array]:
    """The k largest entries of the last axis, exactly, in no order.

    In two stages where that is cheaper: the k largest are in the k blocks with the
    largest maxima (and in the rest that makes no block).

    Args:
        values: (heads, N, M).

    Returns:
        (heads, N, k) ids and values.
    """
    size = values.shape[-1]
    block = _block(size, k)
    if block < 4:
        ids = mx.argpartition(-values, k - 1, axis=-1)[..., :k]
        return ids, mx.take_along_axis(values, ids, axis=-1)
    # Block b is every count-th entry from b on: maxima are then taken of whole rows at a time.
    count = size // block
    blocks = mx.unflatten(values[..., : count * block], -1, (block, count))
    best = mx.argpartition(-blocks.max(axis=-2), k - 1, axis=-1)[..., None, :k]
    places = mx.arange(block, dtype=best.dtype)[:, None] * count
    ids = mx.flatten(best + places, -2)
    if count * block < size:
        rest = mx.arange(count * block, size, dtype=ids.dtype)
        rest = mx.broadcast_to(rest, (*ids.shape[:2], rest.size))
        ids = mx.concatenate([ids, rest], axis=-1)
    candidates = mx.take_along_axis(values, ids, axis=-1)
    chosen = mx.argpartition(-candidates, k - 1, axis=-1)[..., :k]
    return mx.take_along_axis(ids, chosen, axis=-1), mx.take_along_axis(candidates, chosen, axis=-1)


def largest_on_host(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The same in numpy, whose vectorised partition makes it several times faster on CPUs.

    Args:
        values: (heads, M, N) float32. The axis to search is in the middle: maxima of
            blocks are then taken of whole rows at a time.

    Returns:
        (heads, N, k) int32 ids and values.
    """
    heads, size, queries = values.shape
    block = _block(size, k)
    count = size // block
    if block < 4:
        ids = np.arange(size, dtype=np.int32)
        ids = np.broadcast_to(ids, (heads, queries, size))
        candidates = values.swapaxes(1, 2)
    else:
        # Block b is every count-th entry from b on.
        maxima = values[:, : count * block].reshape(heads, block, count, queries).max(axis=1)
        best = flat_largest(maxima.swapaxes(1, 2), k) % count
        ids = best.reshape(heads, queries, 1, k) + count * np.arange(block)[:, None]
        ids = ids.reshape(heads, queries, block * k)
        if count * block < size:
            rest = np.arange(count * block, size)
            rest = np.broadcast_to(rest, (heads, queries, rest.size))
            ids = np.concatenate([ids, rest], axis=-1)
        first = np.arange(heads)[:, None] * (size * queries) + np.arange(queries)
        candidates = values.reshape(-1).take(first[..., None] + ids * queries)
    chosen = flat_largest(candidates, k)
    shape = (heads, queries, k)
    found = np.ascontiguousarray(candidates).reshape(-1).take(chosen).reshape(shape)
    return ids.reshape(-1).take(chosen).astype(np.int32).reshape(shape), found


def flat_largest(values: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest of each row of (..., M) in the flattened array; k <= M.

    Looks for what reaches the k-th largest value, several times faster than
    argpartition, and right unless values are equal.

    Returns:
        (rows * k,), row by row, in no order within a row.
    """
    size = values.shape[-1]
    rows = np.ascontiguousarray(values).reshape(-1, size)
    threshold = np.partition(rows, size - k, axis=-1)[:, size - k, None]
    reached = (rows >= threshold).reshape(-1).nonzero()[0]
    if reached.size != len(rows) * k:
        chosen = np.argpartition(rows, size - k, axis=-1)[:, size - k :]
        reached = (chosen + size * np.arange(len(rows))[:, None]).reshape(-1)
    return reached


def _on_cpu() -> bool:
    return bool(mx.default_device().type == mx.DeviceType.cpu)


def _block(size: int, k: int) -> int:
    """Block size: the power of two near sqrt(size / k), where both stages look at the fewest."""
    return 1 << max(0, (size // k).bit_length() // 2)
