"""A MemoryView: what requests attend to, one set of arrays over any number of documents."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import mlx.core as mx

    from mlx_parallm.cache.retrieval import LayerMemory
    from mlx_parallm.memory.document import Document

Position = Literal["zero", "contiguous"]
Rotate = Callable[[int, "mx.array"], "mx.array"]


@dataclass(eq=False)
class MemoryView:
    """Documents in a row, as attention reads them; never changed once made.

    Attributes:
        key: the documents' and the position policy's identity.
        documents: in the order of their memories.
        layers: one LayerMemory a layer.
        size: M, memory tokens.
    """

    key: tuple[Hashable, ...]
    position: Position
    documents: tuple[Document, ...]
    layers: list[LayerMemory] = field(default_factory=list)

    @property
    def size(self) -> int:
        """M, memory tokens of all documents."""
        return sum(document.num_memories for document in self.documents)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(layer.nbytes for layer in self.layers)

    def place(self, memory: int) -> tuple[int, int]:
        """Document's place and the memory's place within it."""
        starts = self._starts
        document = int(np.searchsorted(starts, memory, side="right")) - 1
        return document, memory - int(starts[document])

    @property
    def _starts(self) -> np.ndarray:
        sizes = [document.num_memories for document in self.documents]
        return np.cumsum([0, *sizes[:-1]])


def build_layer(
    parts: Items[tuple[mx.array, mx.array]], layer: int, position: Position, rotate: Rotate
) -> LayerMemory:
    """One layer of a view. On the engine's thread only.

    Args:
        parts: K before rotation and V of each document, (kv_heads, n, dim).
    """
    import mlx.core as mx

    from mlx_parallm.cache.retrieval import LayerMemory

    keys = mx.concatenate([key for key, _ in parts], axis=1)
    values = mx.concatenate([value for _, value in parts], axis=1)
    if position == "contiguous":
        keys = rotate(layer, keys)
    memory = LayerMemory(keys, values)
    mx.eval(memory.arrays)
    return memory
