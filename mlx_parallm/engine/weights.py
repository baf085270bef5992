"""Versions of the model's own weights, and which of them a forward reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from mlx_parallm.models.checkpoint.parameters import Parameters


Running = Literal["finish", "keep", "recompute"]
"""What becomes of sequences that have begun: they finish with the version that they have, or go
on with the new one and keep their K and V, or compute these again."""
RUNNING: tuple[Running, ...] = get_args(Running)


@dataclass(frozen=True, eq=False, slots=True)
class Weights:
    """One version of the model's weights, as sequences hold it; it never changes.

    Attributes:
        version: 0 as loaded, then counted from 1.
        digest: of what was uploaded; empty as loaded.
        parameters: by their paths, on the device.
    """

    version: int
    digest: str
    parameters: Mapping[str, Any]

    @property
    def namespace(self) -> tuple[object, ...]:
        """Its part of the prefix cache's key; what was loaded needs none, since prefixes on disk
        lie in a folder of its own fingerprint."""
        return ("weights", self.digest) if self.digest else ()

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(array.nbytes for array in self.parameters.values())


class ModelWeights:
    """The weights that a model computes with. On the engine's thread.

    Args:
        parameters: the places of the model's parameters.

    Attributes:
        current: what new sequences get, and whatever computes outside of steps.
    """

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self.current = Weights(0, "", parameters.now())

    def put(self, weights: Weights) -> None:
        """Make these the current ones."""
        self._parameters.put(weights.parameters)
        self.current = weights

    @contextmanager
    def over(self, weights: Weights | None) -> Iterator[None]:
        """Build a forward that reads a version; None is the current one."""
        if weights is None or weights is self.current:
            yield
            return
        self._parameters.put(weights.parameters)
        try:
            yield
        finally:
            self._parameters.put(self.current.parameters)
