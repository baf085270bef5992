"""An Adapter: one version of what can be added to the model, as sequences hold it. No mlx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_parallm.models.lora.delta import AdapterWeights


@dataclass(eq=False, slots=True)
class Adapter:
    """One version of an adapter; its weights never change.

    Attributes:
        name: that requests use; version: counted from 1 for each name.
        weights: on the host.
        slot: where it is on the device; 0 is nowhere. Set on the engine's thread.
        prepared: its arrays on their way to a slot; see AdapterSlots.
    """

    name: str
    version: int
    weights: AdapterWeights
    slot: int = 0
    prepared: Any = None

    @property
    def digest(self) -> str:
        """Of what is in it."""
        return self.weights.digest

    @property
    def namespace(self) -> tuple[object, ...]:
        """Its part of the prefix cache's key."""
        return ("adapter", self.name, self.version, self.digest)
