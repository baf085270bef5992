"""Extended Mind attention: rows that also attend to the memories most like their queries.

For each query token and query head, the k memory tokens whose keys are most
similar (cosine, with the rotated query) join the local tokens in one softmax.
It is computed in float32. Rows without memories stay on the model's own
attention, bit for bit.

Source: Klett and Ahle, "Extended Mind Transformers", arXiv 2406.02332.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any, Protocol

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.retrieval import A, LayerMemory, above

Plain = Callable[[], mx.array]


class MemoryLayers(Protocol):
    """Memory tokens, and one LayerMemory a layer; see memory/view.py."""

    layers: list[LayerMemory]

    @property
    def size(self) -> int:
        """M, memory tokens."""


class Attended(Protocol):
    """How one row uses its memories; see memory/request.py."""

    @property
    def view(self) -> MemoryLayers:
        """What the row attends to."""

    @property
    def topk(self) -> int:
        """Memories per query token and head."""

    @property
    def sim_threshold(self) -> float | None:
        """Memories with a similarity up to this are left out."""

    @property
    def citations(self) -> str:
        """ "none", "token" or "span"."""

    @property
    def group_key(self) -> Hashable:
        """Rows with equal keys are searched together."""

    def uses(self, layer: int) -> bool:
        """Whether the row attends to memories in this layer."""


@dataclass(slots=True)
class Cited:
    """Which memories one forward used, for rows that asked.

    Attributes:
        rows: places in the forward, in the order of the arrays' first axis.
        ids: (rows, T, n) memory tokens; weights: (rows, T, n) their share of the
            attention of one head in one layer. n is layers * heads * k.
        heads: how many heads in layers there were: the weights' sum over them is at most 1 each.
    """

    rows: list[int]
    ids: mx.array
    weights: mx.array
    heads: int


@dataclass(slots=True)
class _Group:
    """Rows of a forward that search the same memories in the same way."""

    request: Attended
    rows: list[int] = field(default_factory=list)
    cited: list[tuple[mx.array | None, mx.array]] = field(default_factory=list)

    @property
    def wants_citations(self) -> bool:
        return self.request.citations != "none"


class MemoryForward:
    """The memories of one forward's rows.

    Args:
        requests: each row's, None where it has no memories or computes nothing.
    """

    def __init__(self, requests: Items[Attended | None]) -> None:
        self.size = len(requests)
        groups: dict[Any, _Group] = {}
        for row, request in enumerate(requests):
            if request is not None and request.view.size:
                group = groups.setdefault(request.group_key, _Group(request))
                group.rows.append(row)
        self.groups = list(groups.values())

    @classmethod
    def of(cls, requests: Items[Attended | None]) -> MemoryForward | None:
        """The same; None where no row has memories."""
        if all(request is None for request in requests):
            return None
        forward = cls(requests)
        return forward if forward.groups else None

    def uses(self, layer: int) -> bool:
        """Whether some row attends to memories in this layer."""
        return any(group.request.uses(layer) for group in self.groups)

    def attend(
        self,
        layer: int,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        *,
        scale: float,
        mask: mx.array | str | None,
        sinks: mx.array | None = None,
        plain: Plain | None = None,
    ) -> mx.array:
        """Attention over local tokens, and over memories where a row has them.

        Args:
            queries: (B, heads, T, dim), rotated; keys, values: (B, kv_heads, columns, dim).
            mask: None, "causal", or boolean (B or 1, 1, T, columns).
            sinks: (heads,) logits of gpt-oss' attention sinks.
            plain: the attention of all rows without memories; None is MLX's own.

        Returns:
            (B, heads, T, dim).
        """
        mask_of_all = mask
        groups = [group for group in self.groups if group.request.uses(layer)]
        rows = [row for group in groups for row in group.rows]
        first, last = min(rows), max(rows) + 1
        scaled = queries[first:last].astype(mx.float32) * scale
        if isinstance(mask, mx.array) and mask.shape[0] > 1:
            mask = mask[first:last]
        local = _local_scores(scaled, keys[first:last], mask)
        weights, retrieved = [], []
        for group in groups:
            own = [row - first for row in group.rows]
            memory = group.request.view.layers[layer]
            queried, scores = _take(scaled, own), _take(local, own)
            from_memory, shares = _attend(group, memory, queried, scores, sinks)
            retrieved.append(from_memory)
            weights.append(shares)
        places = [row - first for row in rows]
        shares = _in_order(weights, places, last - first)
        output = _in_order(retrieved, places, last - first)
        output = (output + _weighted(shares, values[first:last])).astype(queries.dtype)
        if len(rows) == self.size:
            return output
        if plain is None:
            others = mx.fast.scaled_dot_product_attention(
                queries, keys, values, scale=scale, mask=mask_of_all, sinks=sinks
            )
        else:
            others = plain()
        return _replace(others, output, rows, first)

    def cited(self) -> list[Cited]:
        """What was used since the forward began, for rows that asked."""
        found = []
        for group in self.groups:
            if not group.cited:
                continue
            weights = mx.concatenate([_by_token(w) for _, w in group.cited], axis=-1)
            ids = mx.concatenate([_by_token(_ids(i, w)) for i, w in group.cited], axis=-1)
            heads = sum(w.shape[1] for _, w in group.cited)
            found.append(Cited(group.rows, ids, weights, heads))
        return found


def _attend(
    group: _Group,
    memory: LayerMemory,
    queries: mx.array,
    local: mx.array,
    sinks: mx.array | None,
) -> tuple[mx.array, mx.array]:
    """One softmax over what some rows retrieve and what they have themselves.

    Args:
        queries: (R, heads, T, dim) float32, scaled; local: (R, heads, T, columns) scores.

    Returns:
        (R, heads, T, dim), the part of the output that comes from memory, and
        (R, heads, T, columns), the weights of the local tokens.
    """
    count, heads, width, _ = queries.shape
    places, scores = _retrieve(queries, memory, group.request)
    k = scores.shape[-1]
    parts = [scores, local]
    if sinks is not None:
        sink = sinks.astype(mx.float32)[:, None, None]
        parts.append(mx.broadcast_to(sink, (count, heads, width, 1)))
    shares = mx.softmax(mx.concatenate(parts, axis=-1), axis=-1)
    own = shares[..., :k]
    if group.wants_citations:
        group.cited.append((None if places is None else mx.array(places) % memory.size, own))
    if places is None:
        output = _by_kv_head(own, memory.unit.shape[0]) @ memory.values.astype(mx.float32)
        output = _by_row(output, count, heads, width)
    else:
        output = (own[..., None, :] @ memory.values_at(places)).squeeze(-2)
    return output, shares[..., k : k + local.shape[-1]]


def _retrieve(
    queries: mx.array, memory: LayerMemory, request: Attended
) -> tuple[mx.array | np.ndarray | None, mx.array]:
    """(R, heads, T, k) places for memory.values_at, None where k is all of them in order,
    and scores of (R, heads, T, dim) queries."""
    shape = queries.shape[:3]
    grouped = _by_kv_head(queries, memory.unit.shape[0])
    if request.topk < memory.size:
        places, scores = memory.nearest(grouped, request.topk, request.sim_threshold)
        if isinstance(places, np.ndarray) and isinstance(scores, np.ndarray):
            # Sorted on the host, where small operations take less time than in MLX.
            return _by_row(places, *shape), mx.array(_by_row(scores, *shape))
        assert isinstance(places, mx.array) and isinstance(scores, mx.array)
        return _by_row(places, *shape), _by_row(scores, *shape)
    products = memory.products(grouped)
    scores = products * memory.norms[:, None]
    if request.sim_threshold is not None:
        scores = above(request.sim_threshold, grouped, products, scores)
    return None, _by_row(scores, *shape)


def _local_scores(queries: mx.array, keys: mx.array, mask: mx.array | str | None) -> mx.array:
    """(R, heads, T, columns) float32 of scaled queries with the rows' own keys."""
    count, heads, width, _ = queries.shape
    kv_heads, columns = keys.shape[1:3]
    grouped = queries.reshape(count, kv_heads, heads // kv_heads * width, -1)
    scores = grouped @ keys.astype(mx.float32).swapaxes(-1, -2)
    scores = scores.reshape(count, heads, width, columns)
    if isinstance(mask, str):
        mask = mx.arange(columns) <= mx.arange(columns - width, columns)[:, None]
    if mask is None:
        return scores
    return mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask


def _weighted(weights: mx.array, values: mx.array) -> mx.array:
    """(R, heads, T, columns) weights with (R, kv_heads, columns, dim) values, summed."""
    count, heads, width, columns = weights.shape
    grouped = weights.reshape(count, values.shape[1], -1, columns)
    return (grouped @ values.astype(mx.float32)).reshape(count, heads, width, -1)


def _take(array: mx.array, rows: list[int]) -> mx.array:
    """Rows of the first axis; neighbours without a copy."""
    first, last = rows[0], rows[-1] + 1
    if rows == list(range(first, last)):
        return array if last - first == array.shape[0] else array[first:last]
    return array[mx.array(rows)]


def _by_kv_head(queries: mx.array, kv_heads: int) -> mx.array:
    """(R, heads, T, dim) to (kv_heads, R * group * T, dim): head h belongs to h // group."""
    count, heads, width, dim = queries.shape
    grouped = queries.reshape(count, kv_heads, heads // kv_heads * width, dim)
    return grouped.swapaxes(0, 1).reshape(kv_heads, -1, dim)


def _by_row(array: A, count: int, heads: int, width: int) -> A:
    """(kv_heads, R * group * T, n) to (R, heads, T, n)."""
    kv_heads, _, size = array.shape
    split = array.reshape(kv_heads, count, heads // kv_heads * width, size)
    return split.swapaxes(0, 1).reshape(count, heads, width, size)


def _in_order(parts: list[mx.array], places: list[int], size: int) -> mx.array:
    """Rows of all parts at their places; nothing counts at places that are not named."""
    if places == list(range(size)):
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)
    source = np.zeros(size, dtype=np.int32)
    source[places] = np.arange(len(places))
    return mx.concatenate(parts)[mx.array(source)]


def _replace(output: mx.array, new: mx.array, rows: list[int], first: int) -> mx.array:
    """All rows' output with that of some rows replaced; new[0] is that of row `first`."""
    source = np.arange(len(output))
    source[rows] = len(output) + np.array(rows) - first
    return mx.concatenate([output, new])[mx.array(source)]


def _by_token(array: mx.array) -> mx.array:
    """(R, heads, T, k) to (R, T, heads * k)."""
    return mx.flatten(array.swapaxes(1, 2), 2)


def _ids(ids: mx.array | None, weights: mx.array) -> mx.array:
    if ids is not None:
        return ids.astype(mx.int32)
    return mx.broadcast_to(mx.arange(weights.shape[-1], dtype=mx.int32), weights.shape)
