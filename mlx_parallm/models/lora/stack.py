"""The stacks of one module: what every slot's adapter adds to it. Slot 0 adds nothing."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from mlx_parallm.models.lora.routing import Lanes, Routing


class Stack:
    """Low-rank parts, gains, biases and replaced parameters of one module, by slot.

    Args:
        slots: how many adapters there may be.
        dtype: of the module's products.

    Attributes:
        a: (slots + 1, in, r) and b: (slots + 1, r, out); experts' (slots + 1, E, in, r).
        gain: (slots + 1, out) that the plain output is multiplied by.
        token_gain: (slots + 1, vocabulary), an embedding's.
        added: (slots + 1, out).
        replaced: the module with other parameters, by slot.
    """

    def __init__(self, routing: Routing, slots: int, dtype: mx.Dtype) -> None:
        self.routing = routing
        self.slots = slots
        self.dtype = dtype
        self.a: mx.array | None = None
        self.b: mx.array | None = None
        self.gain: mx.array | None = None
        self.token_gain: mx.array | None = None
        self.added: mx.array | None = None
        self.replaced: dict[int, Any] = {}
        self.used: set[int] = set()

    @property
    def arrays(self) -> list[mx.array]:
        """Everything to evaluate."""
        parts = (self.a, self.b, self.gain, self.token_gain, self.added)
        own = [array for array in parts if array is not None]
        return own + [a for m in self.replaced.values() for a in m.values() if _is_array(a)]

    @property
    def nbytes(self) -> int:
        """Bytes of all slots."""
        return sum(array.nbytes for array in self.arrays)

    @property
    def lanes(self) -> Lanes | None:
        """The forward's lanes, where one of its adapters changes this module."""
        lanes = self.routing.lanes
        return None if lanes is None or self.used.isdisjoint(lanes.active) else lanes

    def put(
        self,
        slot: int,
        a: mx.array | None = None,
        b: mx.array | None = None,
        gain: mx.array | None = None,
        token_gain: mx.array | None = None,
        added: mx.array | None = None,
        replaced: Any = None,
    ) -> None:
        """Fill a slot; what is not given changes nothing."""
        self.clear(slot)
        self.used.add(slot)
        self.a, self.b = self._low_rank(slot, a, b)
        self.gain = self._row(self.gain, slot, gain, 1.0)
        self.token_gain = self._row(self.token_gain, slot, token_gain, 1.0)
        self.added = self._row(self.added, slot, added, 0.0)
        if replaced is not None:
            self.replaced[slot] = replaced

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        if slot not in self.used:
            return
        self.used.discard(slot)
        self.replaced.pop(slot, None)
        if not self.used:
            self.a = self.b = self.gain = self.token_gain = self.added = None
            return
        self.b = self._row(self.b, slot, None, 0.0)
        self.gain = self._row(self.gain, slot, None, 1.0)
        self.token_gain = self._row(self.token_gain, slot, None, 1.0)
        self.added = self._row(self.added, slot, None, 0.0)

    def _low_rank(
        self, slot: int, a: mx.array | None, b: mx.array | None
    ) -> tuple[mx.array | None, mx.array | None]:
        if a is None or b is None:
            return self.a, self.b
        rank = max(b.shape[-2], 0 if self.b is None else self.b.shape[-2])
        a, b = _widened(a.astype(self.dtype), -1, rank), _widened(b.astype(self.dtype), -2, rank)
        stack_a = self._stack(self.a, a.shape, rank, -1)
        stack_b = self._stack(self.b, b.shape, rank, -2)
        stack_a[slot], stack_b[slot] = a, b
        return stack_a, stack_b

    def _stack(
        self, stack: mx.array | None, shape: tuple[int, ...], rank: int, axis: int
    ) -> mx.array:
        if stack is None:
            return mx.zeros((self.slots + 1, *shape), self.dtype)
        return _widened(stack, axis, rank)

    def _row(
        self, stack: mx.array | None, slot: int, value: mx.array | None, otherwise: float
    ) -> mx.array | None:
        if stack is None:
            if value is None:
                return None
            stack = mx.full((self.slots + 1, *value.shape), otherwise, self.dtype)
        stack[slot] = otherwise if value is None else value.astype(self.dtype)
        return stack


def _widened(array: mx.array, axis: int, rank: int) -> mx.array:
    """The array with zeros behind it, so that its axis is `rank` wide."""
    missing = rank - array.shape[axis]
    if not missing:
        return array
    shape = list(array.shape)
    shape[axis] = missing
    return mx.concatenate([array, mx.zeros(shape, array.dtype)], axis=axis)


def _is_array(value: Any) -> bool:
    return isinstance(value, mx.array)
