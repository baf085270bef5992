"""Turns as bytes. No mlx here.

Sequences travel as they are, except for three things: read-only mappings become plain ones, a
constraint is its grammar, which is compiled again, and an adapter is sent once and then named.
"""

from __future__ import annotations

import io
import itertools
import pickle
import weakref
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.grammar.constraint import Constraint
from mlx_parallm.engine.grammar.gate import Gate
from mlx_parallm.engine.grammar.grammar import Grammar
from mlx_parallm.engine.ranks.turn import Turn

Compile = Callable[[Grammar | None, Gate | None], Constraint]


class Writer:
    """Rank 0's side.

    Attributes:
        forgotten: keys of adapters that are gone, for the next turn.
    """

    def __init__(self) -> None:
        self.forgotten: list[int] = []
        self._keys: weakref.WeakKeyDictionary[Adapter, int] = weakref.WeakKeyDictionary()
        self._next_key = itertools.count()

    def write(self, turn: Turn) -> bytes:
        """A turn as bytes."""
        turn.forgotten = [self.forgotten.pop(0) for _ in range(len(self.forgotten))]
        buffer = io.BytesIO()
        _Pickler(buffer, self).dump(turn)
        return buffer.getvalue()

    def name(self, adapter: Adapter) -> tuple[str, int, tuple[Any, ...] | None]:
        """How an adapter is written: with what is in it for the first time only."""
        key = self._keys.get(adapter)
        if key is not None:
            return "adapter", key, None
        key = self._keys[adapter] = next(self._next_key)
        weakref.finalize(adapter, self.forgotten.append, key)
        return "adapter", key, (adapter.name, adapter.version, adapter.weights)


class Reader:
    """The other ranks' side.

    Args:
        compiled: makes constraints.
    """

    def __init__(self, compiled: Compile) -> None:
        self._compiled = compiled
        self._adapters: dict[int, Adapter] = {}

    def read(self, data: bytes) -> Turn:
        """The turn in these bytes, which must come from a rank of this group."""
        turn: Turn = _Unpickler(io.BytesIO(data), self).load()
        for key in turn.forgotten:
            self._adapters.pop(key, None)
        return turn

    def constraint(self, grammar: Grammar | None, gate: Gate | None) -> Constraint:
        """A new constraint."""
        return self._compiled(grammar, gate)

    def adapter(self, key: int, content: tuple[Any, ...] | None) -> Adapter:
        """The adapter of this key."""
        if content is not None:
            self._adapters[key] = Adapter(*content)
        return self._adapters[key]


class _Pickler(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, writer: Writer) -> None:
        super().__init__(buffer, pickle.HIGHEST_PROTOCOL)
        self._writer = writer

    def persistent_id(self, value: Any) -> Any:
        """What stands for values that do not travel."""
        if isinstance(value, Constraint):
            return "constraint", value.grammar, value.first_gate
        return self._writer.name(value) if isinstance(value, Adapter) else None

    def reducer_override(self, value: Any) -> Any:
        """How values are written that cannot be pickled."""
        if isinstance(value, MappingProxyType):
            return dict, (dict(value),)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, reader: Reader) -> None:
        super().__init__(buffer)
        self._reader = reader

    def persistent_load(self, pid: Any) -> Any:
        """What stands behind it."""
        kind, first, second = pid
        return getattr(self._reader, kind)(first, second)
