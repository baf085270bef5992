"""MemoryMeter: the process's memory use while one request was answered.

MLX counts for the whole process, so what runs beside a request is in its figures; they say
so with "scope". Its highest use is of the request's own time: MLX's counter is reset for each
new request, and what it had reached is first noted for those that still run.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import mlx.core as mx

from mlx_parallm.models.system_memory import resident_bytes

_MB = 1e6
_lock = threading.Lock()
_running: weakref.WeakSet[MemoryMeter] = weakref.WeakSet()


class MemoryMeter:
    """Measures from now on, until it is dropped."""

    def __init__(self) -> None:
        with _lock:
            for meter in _running:
                meter._note_peak()
            mx.reset_peak_memory()
            self._initial = self._peak = mx.get_active_memory()
            _running.add(self)

    def read(self) -> dict[str, Any]:
        """The figures until now, in MB, as an answer shows them.

        `memory_used` is what is held now beyond what was held at the beginning; none where
        memory was given back. `resident_memory` is the operating system's figure, None where
        it does not say. `tracking_available` is whether MLX counts on this device.
        """
        with _lock:
            self._note_peak()
            current, peak = mx.get_active_memory(), self._peak
        resident = resident_bytes()
        return {
            "device_type": device_name(),
            "initial_memory": self._initial / _MB,
            "current_memory": current / _MB,
            "peak_memory": max(peak, current) / _MB,
            "memory_used": max(0, current - self._initial) / _MB,
            "resident_memory": None if resident is None else resident / _MB,
            # A model is loaded, so 0 bytes in use mean that MLX does not count on this device.
            "tracking_available": current > 0,
            "scope": "process",
        }

    def _note_peak(self) -> None:
        self._peak = max(self._peak, mx.get_peak_memory())


def device_name() -> str:
    """GPU or CPU: where the model runs."""
    return "CPU" if mx.default_device().type == mx.DeviceType.cpu else "GPU"
