"""Extended Mind attention: rows that also attend to the memories most like their queries.

For each query token and query head, the k memory tokens whose keys are most
similar (cosine, with the rotated query) join the local tokens in one softmax.
It is computed as a merge, in float32: with the outputs o_l, o_m and the
log-sum-exps l_l, l_m of the local and of the retrieved tokens,

    o = o_l + sigmoid(l_m - l_l) * (o_m - o_l).

Rows without memories stay on the model's own attention, bit for bit.

Source: Klett and Ahle, "Extended Mind Transformers", arXiv 2406.02332.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.memory.request import MemoryRequest
from mlx_parallm.models.retrieval import LayerMemory, gather

Plain = Callable[[], mx.array]


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

    request: MemoryRequest
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

    def __init__(self, requests: Items[MemoryRequest | None]) -> None:
        self.size = len(requests)
        groups: dict[Any, _Group] = {}
        for row, request in enumerate(requests):
            if request is not None and request.view.size:
                group = groups.setdefault(request.group_key, _Group(request))
                group.rows.append(row)
        self.groups = list(groups.values())

    @classmethod
    def of(cls, requests: Items[MemoryRequest | None]) -> MemoryForward | None:
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
        groups = [group for group in self.groups if group.request.uses(layer)]
        rows = [row for group in groups for row in group.rows]
        first, last = min(rows), max(rows) + 1
        local = _Local(
            queries[first:last].astype(mx.float32) * scale,
            keys[first:last],
            values[first:last],
            mask[first:last] if isinstance(mask, mx.array) and mask.shape[0] > 1 else mask,
            sinks,
        )
        parts = []
        for group in groups:
            own = [row - first for row in group.rows]
            memory = group.request.view.layers[layer]
            merged = self._merge(group, memory, queries, local.rows(own), scale)
            parts.append(merged.astype(queries.dtype))
        if rows == list(range(self.size)):
            return parts[0] if len(parts) == 1 else mx.concatenate(parts)
        if plain is None:
            output = mx.fast.scaled_dot_product_attention(
                queries, keys, values, scale=scale, mask=mask, sinks=sinks
            )
        else:
            output = plain()
        return _replace(output, parts, rows, self.size)

    def _merge(
        self,
        group: _Group,
        memory: LayerMemory,
        queries: mx.array,
        local: tuple[mx.array, mx.array],
        scale: float,
    ) -> mx.array:
        output, total = local  # (R, heads, T, dim), (R, heads, T)
        count, heads, width, _ = output.shape
        kv_heads = memory.unit.shape[0]
        found = _retrieve(_by_kv_head(_take(queries, group.rows), kv_heads), memory, group, scale)

        def by_row(array: mx.array) -> mx.array:
            """(kv_heads, R * group * T, ...) to (R, heads, T, ...)."""
            rest = array.shape[2:]
            array = array.reshape(kv_heads, count, heads // kv_heads, width, *rest)
            return array.swapaxes(0, 1).reshape(count, heads, width, *rest)

        share = mx.sigmoid(by_row(found.total) - total)
        if group.wants_citations:
            ids = None if found.ids is None else by_row(found.ids)
            group.cited.append((ids, by_row(found.weights) * share[..., None]))
        return output + share[..., None] * (by_row(found.output) - output)

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


@dataclass(slots=True)
class _Found:
    """What queries got from memory; weights sum to 1 where there is anything at all.

    Attributes:
        output: (kv_heads, N, dim); total: (kv_heads, N) log-sum-exp of the scores.
        ids: (kv_heads, N, k), None where k is all of them in order; weights: likewise.
    """

    output: mx.array
    total: mx.array
    ids: mx.array | None
    weights: mx.array


def _retrieve(queries: mx.array, memory: LayerMemory, group: _Group, scale: float) -> _Found:
    """queries: (kv_heads, N, dim)."""
    request = group.request
    k = min(request.topk, memory.size)
    ids: mx.array | None = None
    if k == memory.size:
        products = memory.products(queries)
        scores = products * memory.norms[:, None] * scale
    else:
        ids, products = memory.search(queries, k)
        scores = products * gather(memory.norms, ids) * scale
    if request.sim_threshold is not None:
        lengths = mx.linalg.norm(queries.astype(mx.float32), axis=-1, keepdims=True)
        scores = mx.where(products > request.sim_threshold * lengths, scores, -mx.inf)
    # Where all are masked, the largest score must not make NaN of -inf minus -inf.
    top = mx.maximum(scores.max(axis=-1, keepdims=True), mx.array(-1e30))
    weights = mx.exp(scores - top)
    mass = weights.sum(axis=-1, keepdims=True)
    weights = weights / mx.maximum(mass, mx.array(1e-30))
    if ids is None:
        output = weights @ memory.values.astype(mx.float32)
    else:
        chosen = gather(memory.values, ids).astype(mx.float32)
        output = (weights[..., None, :] @ chosen).squeeze(-2)
    return _Found(output, (top + mx.log(mass)).squeeze(-1), ids, weights)


class _Local:
    """Attention to the local tokens, with its log-sum-exp, in float32.

    Args:
        queries: (R, heads, T, dim) float32, scaled.
    """

    def __init__(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        mask: mx.array | str | None,
        sinks: mx.array | None,
    ) -> None:
        count, heads, width, _ = queries.shape
        kv_heads, columns = keys.shape[1:3]
        grouped = queries.reshape(count, kv_heads, heads // kv_heads * width, -1)
        scores = grouped @ keys.astype(mx.float32).swapaxes(-1, -2)
        scores = scores.reshape(count, heads, width, columns)
        if isinstance(mask, str):
            mask = mx.arange(columns) <= mx.arange(columns - width, columns)[:, None]
        if mask is not None:
            scores = (
                mx.where(mask, scores, -mx.inf) if mask.dtype == mx.bool_ else scores + mask
            )
        self.total = mx.logsumexp(scores, axis=-1)
        if sinks is not None:
            self.total = mx.logaddexp(self.total, sinks.astype(mx.float32)[:, None])
        weights = mx.exp(scores - self.total[..., None])
        weights = weights.reshape(count, kv_heads, -1, columns)
        output = weights @ values.astype(mx.float32)
        self.output = output.reshape(count, heads, width, -1)

    def rows(self, places: list[int]) -> tuple[mx.array, mx.array]:
        """Output and log-sum-exp of some rows."""
        return _take(self.output, places), _take(self.total, places)


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


def _replace(output: mx.array, parts: list[mx.array], rows: list[int], size: int) -> mx.array:
    """All rows' output with that of some rows replaced."""
    source = np.arange(size)
    source[rows] = size + np.arange(len(rows))
    return mx.concatenate([output, *parts])[mx.array(source)]


def _by_token(array: mx.array) -> mx.array:
    """(R, heads, T, k) to (R, T, heads * k)."""
    return mx.flatten(array.swapaxes(1, 2), 2)


def _ids(ids: mx.array | None, weights: mx.array) -> mx.array:
    if ids is not None:
        return ids.astype(mx.int32)
    return mx.broadcast_to(mx.arange(weights.shape[-1], dtype=mx.int32), weights.shape)
