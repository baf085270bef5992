"""The AdapterPool: which adapters are on the device. On the engine's thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.weights import ModelWeights, Weights
from mlx_parallm.models.lora.slots import AdapterSlots, Prepared


class AdapterPool:
    """Puts adapters into slots when rows need them; the least recently used one goes.

    Args:
        slots: of the model.
        weights: the model's own, on a version of which an adapter is prepared.
    """

    def __init__(self, slots: AdapterSlots, weights: ModelWeights) -> None:
        self.slots = slots
        self._weights = weights
        self.loads = 0
        self._resident: OrderedDict[int, Adapter] = OrderedDict()  # by slot, the newest use last

    @property
    def resident(self) -> list[Adapter]:
        """Those on the device."""
        return list(self._resident.values())

    def admit(self, sequence: Sequence, running: Iterable[Sequence]) -> bool:
        """Bring a sequence's adapter onto the device; false while rows use all slots."""
        adapter = sequence.adapter
        return adapter is None or bool(self.place(adapter, sequence.weights, running))

    def place(self, adapter: Adapter, base: Weights | None, running: Iterable[Sequence]) -> int:
        """The slot of an adapter, which is put there where it is not; 0 while rows use all.

        Args:
            base: the version of the model that the adapter belongs to.
        """
        if not adapter.slot:
            slot = self._free_slot({id(s.adapter) for s in running if s.adapter is not None})
            if not slot:
                return 0
            self._put(slot, adapter, base)
        self._resident.move_to_end(adapter.slot)
        return adapter.slot

    def preparing(self, adapter: Adapter, base: Weights | None) -> list[Callable[[], None]]:
        """Steps that make `admit` quick, each of them short.

        Args:
            base: the version of the model that the adapter belongs to.
        """
        prepared: Prepared = {}

        def on_base(step: Callable[[], None]) -> None:
            with self._weights.over(base):
                step()

        def done() -> None:
            adapter.prepared = prepared

        steps = self.slots.preparing(adapter.weights, prepared)
        return [*(partial(on_base, step) for step in steps), done]

    def forget(self, adapter: Adapter) -> None:
        """Free an adapter's slot; no row may use it."""
        if adapter.slot:
            self.slots.clear(adapter.slot)
            del self._resident[adapter.slot]
            adapter.slot = 0

    def forget_bases(self, kept: set[int], running: Iterable[Sequence]) -> None:
        """Drop what was prepared on versions of the model that are gone."""
        used = {id(sequence.adapter) for sequence in running}
        for adapter in self.resident:
            if adapter.base not in kept and id(adapter) not in used:
                self.forget(adapter)
            adapter.forget_bases(kept)

    def _free_slot(self, used: set[int]) -> int:
        for slot in range(1, self.slots.size + 1):
            if slot not in self._resident:
                return slot
        for slot, adapter in self._resident.items():
            if id(adapter) not in used:
                self.forget(adapter)
                return slot
        return 0

    def _put(self, slot: int, adapter: Adapter, base: Weights | None) -> None:
        if adapter.prepared is None:
            for step in self.preparing(adapter, base):
                step()
        self.slots.put(slot, adapter.prepared)
        adapter.prepared, adapter.slot = None, slot
        self._resident[slot] = adapter
        self.loads += 1
