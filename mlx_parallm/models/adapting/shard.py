"""Which part of a layer a rank has, and how that is known."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import numpy as np
from mlx.nn.layers import distributed

_NAME = "shard_of_layer"
Segments = int | tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """Which part of a layer this rank has.

    Attributes:
        axis: the outputs are divided, or the inputs, whose products are added up.
        group: the ranks that have the others.
        segments: of a layer that is several in one, each divided by itself: how many of equal
            size, or where each but the first begins.
        known: whether it is this part; else the layer is divided in some other way.
        partial: the layer gives this rank's products, which are added up later.
    """

    axis: Literal["out", "in"]
    group: mx.distributed.Group
    segments: Segments = 1
    known: bool = True
    partial: bool = False

    @property
    def size(self) -> int:
        """How many ranks have a part."""
        return self.group.size()

    def part(self, array: np.ndarray, axis: int) -> np.ndarray:
        """This rank's part of an array that is divided like the layer."""
        segments = self.segments if isinstance(self.segments, int) else list(self.segments)
        parts = [
            np.split(segment, self.size, axis)[self.group.rank()]
            for segment in np.split(array, segments, axis)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def shard_of(module: Any) -> Shard | None:
    """Which part of a layer this is; None for a whole one."""
    return getattr(module, _NAME, None)


def tag(module: Any, shard: Shard) -> None:
    """Say which part of a layer this is."""
    # Not through nn.Module, which takes only parameters and modules for its own.
    object.__setattr__(module, _NAME, shard)


@contextmanager
def noting(group: mx.distributed.Group) -> Iterator[None]:
    """Let layers be tagged as mlx-lm's models divide them.

    Their code has MLX's two functions for it under these names.
    """
    noted = {
        "shard_linear": _noted(distributed.shard_linear, group),
        "shard_inplace": _noted(distributed.shard_inplace, group),
    }
    changed = [
        (vars(module), name)
        for module in list(sys.modules.values())
        for name in noted
        if vars(module).get(name) is getattr(distributed, name)
    ]
    originals = {name: getattr(distributed, name) for name in noted}
    for names, name in changed:
        names[name] = noted[name]
    try:
        yield
    finally:
        for names, name in changed:
            names[name] = originals[name]


def _noted(divide: Callable[..., Any], group: mx.distributed.Group) -> Callable[..., Any]:
    in_place = divide is distributed.shard_inplace

    def noted(module: Any, sharding: Any, *, segments: Any = 1, **more: Any) -> Any:
        divided = divide(module, sharding, segments=segments, **more)
        if isinstance(sharding, str):
            tag(
                module if in_place else divided,
                Shard(
                    "out" if sharding == "all-to-sharded" else "in",
                    group,
                    segments if isinstance(segments, int) else tuple(segments),
                    known=isinstance(segments, int) or isinstance(segments[0], int),
                    partial=in_place and sharding == "sharded-to-all",
                ),
            )
        return divided

    return noted
