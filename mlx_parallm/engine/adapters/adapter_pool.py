"""The AdapterPool: which adapters are on the device. On the engine's thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.models.lora.slots import AdapterSlots, Prepared


class AdapterPool:
    """Puts adapters into slots when rows need them; the least recently used one goes.

    Args:
        slots: of the model.
    """

    def __init__(self, slots: AdapterSlots) -> None:
        self.slots = slots
        self.loads = 0
        self._resident: OrderedDict[int, Adapter] = OrderedDict()  # by slot, the newest use last

    @property
    def resident(self) -> list[Adapter]:
        """Those on the device."""
        return list(self._resident.values())

    def admit(self, sequence: Sequence, running: Iterable[Sequence]) -> bool:
        """Bring a sequence's adapter onto the device; false while rows use all slots."""
        adapter = sequence.adapter
        if adapter is None:
            return True
        if not adapter.slot:
            slot = self._free_slot({id(s.adapter) for s in running if s.adapter is not None})
            if not slot:
                return False
            self._put(slot, adapter)
        self._resident.move_to_end(adapter.slot)
        return True

    def preparing(self, adapter: Adapter) -> list[Callable[[], None]]:
        """Steps that make `admit` quick, each of them short."""
        prepared: Prepared = {}

        def done() -> None:
            adapter.prepared = prepared

        return [*self.slots.preparing(adapter.weights, prepared), done]

    def forget(self, adapter: Adapter) -> None:
        """Free an adapter's slot; no row may use it."""
        if adapter.slot:
            self.slots.clear(adapter.slot)
            del self._resident[adapter.slot]
            adapter.slot = 0

    def _free_slot(self, used: set[int]) -> int:
        for slot in range(1, self.slots.size + 1):
            if slot not in self._resident:
                return slot
        for slot, adapter in self._resident.items():
            if id(adapter) not in used:
                self.forget(adapter)
                return slot
        return 0

    def _put(self, slot: int, adapter: Adapter) -> None:
        if adapter.prepared is None:
            for step in self.preparing(adapter):
                step()
        self.slots.put(slot, adapter.prepared)
        adapter.prepared, adapter.slot = None, slot
        self._resident[slot] = adapter
        self.loads += 1
