"""What an adapter changes of one module, whatever file format it came in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mlx_parallm.models.adapting.shard import Shard

HEAD = "#head"
"""Behind a module's path: the embedding where it is the output layer (tied weights)."""


@dataclass
class Delta:
    """The change of one module. Arrays are float32; `E` experts are the first axis of a and b.

    Attributes:
        a: (in, r); of an embedding (vocabulary, r). None where nothing is of low rank.
        b: (r, out), scaled already.
        magnitude: DoRA's norms: (out,), or a vocabulary's (see `by_token`).
        by_token: the magnitude of an embedding is one of each token, not of each dimension.
        added: (out,) that is added to the output, once it was scaled by DoRA.
        replaced: parameters of the module that are others, by their names.
    """

    a: np.ndarray | None = None
    b: np.ndarray | None = None
    magnitude: np.ndarray | None = None
    by_token: bool = False
    added: np.ndarray | None = None
    replaced: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def rank(self) -> int:
        """r, 0 where nothing is of low rank."""
        return 0 if self.b is None else int(self.b.shape[-2])


def part_of(delta: Delta, shard: Shard | None) -> Delta:
    """What a rank adds that has a part of the layer; all of it where that is whole."""
    if shard is None:
        return delta
    if shard.axis == "in":
        return _part_of_inputs(delta, shard)
    own: dict[str, Any] = {
        name: None if array is None else shard.part(array, -1)
        for name in ("b", "magnitude", "added")
        for array in (getattr(delta, name),)
    }
    replaced = {name: shard.part(array, 0) for name, array in delta.replaced.items()}
    return replace(delta, **own, replaced=replaced)


def _part_of_inputs(delta: Delta, shard: Shard) -> Delta:
    """Biases are whole, or the ranks' equal parts where these are added up later."""
    parts = shard.size if shard.partial else 1
    return replace(
        delta,
        a=None if delta.a is None else shard.part(delta.a, -2),
        added=None if delta.added is None else delta.added / parts,
        replaced={
            name: array / parts if name == "bias" else shard.part(array, -1)
            for name, array in delta.replaced.items()
        },
    )


@dataclass(frozen=True)
class AdapterWeights:
    """An adapter, read and checked.

    Attributes:
        deltas: by the path of a module in the model.
        digest: of the file's bytes and its settings.
    """

    deltas: Mapping[str, Delta]
    digest: str

    @property
    def rank(self) -> int:
        """The largest rank."""
        return max((delta.rank for delta in self.deltas.values()), default=0)

    @property
    def nbytes(self) -> int:
        """Bytes on the host."""
        return sum(
            array.nbytes
            for delta in self.deltas.values()
            for array in (delta.a, delta.b, delta.magnitude, delta.added, *delta.replaced.values())
            if array is not None
        )
