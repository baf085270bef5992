"""Memories of one layer, and the exact search for those most similar to a query.

Source: Klett and Ahle, "Extended Mind Transformers", arXiv 2406.02332.
"""

from __future__ import annotations

import mlx.core as mx
import numpy as np

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

    def search(self, queries: mx.array, k: int) -> tuple[mx.array, mx.array]:
        """The k memories whose product with each query is the largest, in no order.

        Args:
            queries: (kv_heads, N, dim).
            k: below M.

        Returns:
            (kv_heads, N, k) ids, and products with the unit keys in float32.
        """
        heads, count, _ = queries.shape
        step = max(1, _MOST_SIMILARITIES // (heads * self.size))
        parts = [self._search(queries[:, at : at + step], k) for at in range(0, count, step)]
        if len(parts) == 1:
            return parts[0]
        ids = mx.concatenate([part[0] for part in parts], axis=1)
        return ids, mx.concatenate([part[1] for part in parts], axis=1)

    def products(self, queries: mx.array) -> mx.array:
        """(kv_heads, N, M) float32 products of queries with all unit keys."""
        unit = self.unit
        if unit.dtype != mx.float32:
            queries, unit = queries.astype(mx.float32), unit.astype(mx.float32)
        return queries @ unit.swapaxes(-1, -2)

    def _search(self, queries: mx.array, k: int) -> tuple[mx.array, mx.array]:
        if _on_cpu():
            # BLAS computes this product faster than its transpose.
            products = self.unit @ queries.swapaxes(-1, -2)
            mx.eval(products)
            ids, best = largest_on_host(np.array(products, copy=False), k)
            return mx.array(ids), mx.array(best)
        return self._search_on_gpu(queries, k)

    def _search_on_gpu(self, queries: mx.array, k: int) -> tuple[mx.array, mx.array]:
        products = queries.astype(self.unit.dtype) @ self.unit.swapaxes(-1, -2)
        ids, best = largest(products, k)
        if products.dtype == mx.float32:
            return ids, best
        # The ranking may be rounded, the scores may not.
        keys = gather(self.unit, ids).astype(mx.float32)
        exact = (keys * queries.astype(mx.float32)[:, :, None]).sum(axis=-1)
        return ids, exact


def gather(table: mx.array, ids: mx.array) -> mx.array:
    """Rows of a (heads, M, ...) table: ids (heads, N, k) give (heads, N, k, ...)."""
    heads, size = table.shape[:2]
    flat = table.reshape(heads * size, *table.shape[2:])
    places = ids.astype(mx.int32) + (mx.arange(heads) * size)[:, None, None]
    return flat[places]


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
    """A power of two near sqrt(size / k), where both stages together look at the fewest."""
    return 1 << max(0, (size // k).bit_length() // 2)
