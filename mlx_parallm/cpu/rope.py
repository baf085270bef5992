"""Rotary embeddings from a table.

MLX's CPU fallback computes cos and sin anew for queries and keys of every layer. They
depend on the positions alone, which the host knows, so here they are gathered from a
table once per forward. The table is computed by the embedding it stands for.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx_lm.models import rope_utils

from mlx_parallm.cpu.fusing import fused, sample

# Embeddings that rotate position p by p times fixed frequencies, in halves.
_SUPPORTED = (
    nn.RoPE,
    rope_utils.Llama3RoPE,
    rope_utils.YarnRoPE,
    rope_utils.SuScaledRoPE,
    rope_utils.ProportionalRoPE,
)
_MAX_POSITIONS = 1 << 16
_KEPT = 8  # forwards whose rows are kept; the layers of one forward share theirs
_TOLERANCE = 1e-5

_FEW = 1 << 14  # numbers, up to which one kernel is faster than operations on vectors

Rows = tuple[mx.array, mx.array]


def _sample(rows: int) -> tuple[mx.array, ...]:
    return sample(*[(rows, heads, 1, 8) for heads in (2, 1, 2, 1)])


@fused(*_sample(1), also=(_sample(2),))
def _combined(x: mx.array, cos: mx.array, turned: mx.array, sin: mx.array) -> mx.array:
    return x * cos + turned * sin


class RotaryTable:
    """cos and sin of positions 0, 1, ... of one rotary embedding.

    Args:
        rope: the embedding; not yet replaced.
    """

    def __init__(self, rope: Any) -> None:
        self.dims = int(getattr(rope, "dims", 0) or rope.dim)
        self._rope = rope
        self._call = type(rope).__call__
        self._cos = self._sin = np.zeros((0, self.dims), dtype=np.float32)
        self._rows: OrderedDict[tuple[int | bytes, int], Rows] = OrderedDict()

    def rows(self, offset: int | mx.array, width: int) -> Rows | None:
        """Factors for `width` positions from each row's offset, (1 or B, 1, width, dims).

        None where positions are too large, or unknown because MLX traces a function.
        """
        try:
            start = np.array(offset, dtype=np.int64).reshape(-1)
        except (RuntimeError, ValueError):  # a tracer cannot be evaluated
            return None
        key = (start.tobytes(), width)
        if key not in self._rows:
            # Left padding has negative positions; the results are masked.
            positions = np.maximum(start[:, None] + np.arange(width), 0)
            if not self._reserve(int(positions.max()) + 1):
                return None
            self._rows[key] = self._gather(positions[:, None])
            if len(self._rows) > _KEPT:
                self._rows.popitem(last=False)
        return self._rows[key]

    def rotate(self, x: mx.array, rows: Rows) -> mx.array:
        """x (B, heads, T, D) rotated; features from `dims` on stay."""
        cos, sin = rows
        rest = None
        if x.shape[-1] > self.dims:
            x, rest = mx.split(x, [self.dims], axis=-1)
        first, second = mx.split(x, 2, axis=-1)
        turned = mx.concatenate([second, first], axis=-1)
        # The kernels were made for one token a row and several heads.
        if x.shape[2] == 1 < x.shape[1] and x.size <= _FEW:
            rotated = _combined(x, cos, turned, sin)
        else:
            rotated = x * cos + turned * sin
        return rotated if rest is None else mx.concatenate([rotated, rest], axis=-1)

    def agrees(self) -> bool:
        """Whether table and embedding rotate alike."""
        values = np.random.default_rng(0).standard_normal((2, 1, 3, self.dims))
        x, offset = mx.array(values.astype(np.float32)), mx.array([0, 250])
        rows = self.rows(offset, 3)
        expected = self._call(self._rope, x, offset=offset)
        return rows is not None and bool(
            mx.allclose(self.rotate(x, rows), expected, rtol=_TOLERANCE, atol=_TOLERANCE)
        )

    def stands_for(self, rope: Any) -> bool:
        """Whether another embedding is the same."""
        mine, other = self._rope, rope
        return type(other) in (type(mine), type(mine).__base__) and _parameters(
            mine
        ) == _parameters(other)

    def _gather(self, positions: np.ndarray) -> Rows:
        return mx.array(self._cos[positions]), mx.array(self._sin[positions])

    def _reserve(self, count: int) -> bool:
        if count > _MAX_POSITIONS:
            return False
        if count > len(self._cos):
            size = 1 << max(10, (count - 1).bit_length())
            half = self.dims // 2
            unit = mx.array(np.repeat([1.0, 0.0], half).astype(np.float32))
            ones = mx.broadcast_to(unit, (1, 1, size, self.dims))
            turned = np.array(self._call(self._rope, ones, offset=0))[0, 0]
            cos, sin = turned[:, :half], turned[:, half:]
            self._cos = np.concatenate([cos, cos], axis=1)
            self._sin = np.concatenate([-sin, sin], axis=1)
        return True


def use_tables(model: Any) -> int:
    """Replace the rotary embeddings that can be; returns how many."""
    tables: list[RotaryTable] = []
    replaced = 0
    for rope in model.modules():
        if type(rope) not in _SUPPORTED or getattr(rope, "traditional", False):
            continue
        table = next((t for t in tables if t.stands_for(rope)), None)
        if table is None:
            table = RotaryTable(rope)
            if not table.agrees():
                continue
            tables.append(table)
        rope.__class__ = _TABLED[type(rope)]
        rope.table = table
        replaced += 1
    return replaced


def drop_tables(model: Any) -> None:
    """Undo `use_tables`."""
    for rope in model.modules():
        if type(rope) in _TABLED.values():
            rope.__class__ = type(rope).__base__
            del rope.table


def _tabled(base: Any) -> Any:
    """The class of embeddings that are `base` but for the table."""

    def call(self: Any, x: mx.array, offset: int | mx.array = 0, *args: Any, **kw: Any) -> mx.array:
        table: RotaryTable = self.table
        rows = None
        if x.ndim == 4 and x.dtype == mx.float32 and not args and not kw:
            rows = table.rows(offset, x.shape[2])
        if rows is None:
            original: mx.array = base.__call__(self, x, offset, *args, **kw)
            return original
        return table.rotate(x, rows)

    return type(f"Tabled{base.__name__}", (base,), {"__call__": call})


_TABLED = {base: _tabled(base) for base in _SUPPORTED}


def _parameters(rope: Any) -> list[tuple[str, Any]]:
    """All that defines an embedding, comparable."""
    values = {**rope, **vars(rope)}
    return sorted(
        (name, np.array(value).tolist() if isinstance(value, mx.array) else value)
        for name, value in values.items()
        if name not in ("table", "_no_grad", "_training")
    )
