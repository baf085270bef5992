"""A layer's cache in packed forwards: by token outside, by group of rows inside.

The model is given every real token as a sequence of its own, (N, 1), with its own
position; K and V go to each token's row, and attention is computed group by group, since
the tokens of a row look at that row's K and V. All else in a transformer is by token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import mlx.core as mx

from mlx_parallm.cache.kv_cache import BatchedKVCache
from mlx_parallm.cache.packed_span import Group, PackedSpan
from mlx_parallm.cache.span import Span


class Spans(Protocol):
    """What a layer sees of all classes; see RowCache."""

    @property
    def span(self) -> PackedSpan:
        """The forward that is under way."""


class PackedLayer:
    """One layer of all length classes, as mlx-lm's models take a cache.

    Args:
        place: among the layers.
        window: tokens that a query looks back over; None is all.
        additive: masks are added to scores: a GPU's kernels would make them so in each layer.
    """

    def __init__(
        self, spans: Spans, place: int, window: int | None, *, additive: bool = False
    ) -> None:
        self._spans = spans
        self._additive = additive
        self.place = place
        self.window = window

    @property
    def offset(self) -> mx.array:
        """(N,) int32, the position of each token."""
        return self._spans.span.offsets

    def size(self) -> int:
        """Tokens held by the longest row."""
        return max(int(group.span.lengths.max()) for group in self._spans.span.groups)

    def empty(self) -> bool:
        """Whether nothing was computed yet."""
        return self.size() == 0

    def is_trimmable(self) -> bool:
        """Rows rewind through RowCache."""
        return False

    def make_mask(
        self, N: int, return_array: bool = False, window_size: int | None = None
    ) -> mx.array:
        """A handle; `attend` makes each group's own mask."""
        return self._spans.span.handle(window_size or self.window)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write each token's K and V, (N, kv_heads, 1, dim), into its row."""
        for group in self._spans.span.groups:
            tokens = group.tokens
            self._leaf(group).write_tokens(group.span, keys[tokens], values[tokens])
        return keys, values

    def attend(
        self,
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        *,
        compute: Callable[..., mx.array],
        scale: float,
        mask: Any,
        sinks: mx.array | None,
        memories: bool = True,
    ) -> mx.array:
        """Attention of every token over its own row; see models/attention.py.

        Args:
            queries: (N, heads, 1, dim).
            mask: what make_mask gave, or None.
            compute: attention(queries, keys, values, scale=, mask=, sinks=) of one group.
            memories: rows that have some attend to them, too.

        Returns:
            (N, heads, 1, dim).
        """
        packed = self._spans.span
        window = self.window if mask is None else packed.window_of(mask)
        how = {"scale": scale, "sinks": sinks}
        parts = [
            self._attend_group(group, queries[group.tokens], window, compute, how, memories)
            for group in packed.groups
        ]
        if packed.padded > packed.size:
            rest = packed.padded - packed.size
            parts.append(mx.zeros((rest, *parts[0].shape[1:]), parts[0].dtype))
        return parts[0] if len(parts) == 1 else mx.concatenate(parts)

    def reader(self) -> PackedReader:
        """The cache of a layer that attends to this one's K and V and has none of its own."""
        return PackedReader(self)

    def _attend_group(
        self,
        group: Group,
        queries: mx.array,
        window: int | None,
        compute: Callable[..., mx.array],
        how: dict[str, Any],
        memories: bool,
    ) -> mx.array:
        """(n, heads, 1, dim) of a group's tokens."""
        span, leaf = group.span, self._leaf(group)
        keys, values = leaf.views(span)
        dtype = queries.dtype if self._additive else None
        mask = leaf.mask_of(span, window, dtype=dtype)
        grid, how = _grid(queries, span), how | {"mask": mask}
        memory = span.memory if memories else None
        if memory is None or not memory.uses(self.place):
            return _tokens(compute(grid, keys, values, **how), span)
        output = memory.attend(
            self.place,
            grid,
            keys,
            values,
            plain=lambda: compute(grid, keys, values, **how),
            **how,
        )
        return _tokens(output, span)

    def _leaf(self, group: Group) -> BatchedKVCache:
        leaf = group.home.layers[self.place]
        assert isinstance(leaf, BatchedKVCache)
        return leaf


class PackedReader:
    """Reads a PackedLayer's K and V for another layer, which writes none and has no memories.

    Args:
        layer: whose they are.
    """

    def __init__(self, layer: PackedLayer) -> None:
        self._layer = layer

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """As they are: they were written by the layer whose they are."""
        return keys, values

    def attend(self, *args: Any, **how: Any) -> mx.array:
        """See PackedLayer."""
        return self._layer.attend(*args, **how, memories=False)


def _grid(tokens: mx.array, span: Span) -> mx.array:
    """(B, heads, T, dim) of (n, heads, 1, dim): rows beside each other, padded to one width."""
    if span.width == 1:
        return tokens
    if span.size == 1:
        return tokens.swapaxes(0, 2)
    flat = tokens[:, :, 0]
    if span.ragged:
        flat = flat[span.grid_index()]
    return mx.unflatten(flat, 0, (span.size, span.width)).swapaxes(1, 2)


def _tokens(grid: mx.array, span: Span) -> mx.array:
    """(n, heads, 1, dim) of (B, heads, T, dim); padding is left out."""
    if span.width == 1:
        return grid
    if span.size == 1:
        return grid.swapaxes(0, 2)
    flat = mx.flatten(grid.swapaxes(1, 2), 0, 1)
    if span.ragged:
        flat = flat[span.pack_index()]
    return mx.expand_dims(flat, 2)
