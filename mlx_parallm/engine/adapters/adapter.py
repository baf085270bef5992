"""An Adapter: one version of what can be added to the model, as sequences hold it. No mlx."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_parallm.models.lora.delta import AdapterWeights


@dataclass(eq=False, slots=True, weakref_slot=True)
class Adapter:
    """One version of an adapter; its weights never change.

    Attributes:
        name: that requests use; version: counted from 1 for each name.
        weights: on the host.
        slot: where it is on the device; 0 is nowhere. Set on the engine's thread.
        prepared: its arrays on their way to a slot; see AdapterSlots.
        base: the version of the model that these belong to: DoRA's gains depend on it.
    """

    name: str
    version: int
    weights: AdapterWeights
    slot: int = 0
    prepared: Any = None
    base: int = 0
    _twins: dict[int, Adapter] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of what is in it."""
        return self.weights.digest

    @property
    def namespace(self) -> tuple[object, ...]:
        """Its part of the prefix cache's key."""
        return ("adapter", self.name, self.version, self.digest)

    def on(self, base: int) -> Adapter:
        """The same adapter on another version of the model, with a slot of its own."""
        if base == self.base:
            return self
        self._twins.setdefault(self.base, self)
        twin = Adapter(self.name, self.version, self.weights, base=base, _twins=self._twins)
        return self._twins.setdefault(base, twin)  # as one step: two threads may ask

    @property
    def is_resident(self) -> bool:
        """Whether it is on the device, on any version of the model."""
        return bool(self.slot) or any(twin.slot for twin in list(self._twins.values()))

    def forget_bases(self, kept: set[int]) -> None:
        """Drop what it was on versions of the model that are gone."""
        for base in self._twins.keys() - kept:
            del self._twins[base]
