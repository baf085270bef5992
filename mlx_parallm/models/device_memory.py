"""How many bytes the device has."""

from __future__ import annotations

import os

import mlx.core as mx

MINIMUM = 256 << 20


def total_memory() -> int:
    """Bytes of memory that the default device works in."""
    info = mx.device_info(mx.default_device())
    for name in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if info.get(name):
            return int(info[name])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_kv_bytes(weights: int) -> int:
    """Half of what the weights leave, and never nothing."""
    return max(MINIMUM, (total_memory() - weights) // 2)
