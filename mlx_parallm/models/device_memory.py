"""What the device is called and how many bytes it has."""

from __future__ import annotations

import gc
import platform

import mlx.core as mx

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.system_memory import available_bytes, physical_bytes

MINIMUM = 256 << 20


def total_memory() -> int:
    """Bytes of memory that the default device works in."""
    info = mx.device_info(mx.default_device())
    for name in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if info.get(name):
            return int(info[name])
    return physical_bytes()


def free_memory() -> int:
    """Bytes that the default device could still give; caches of the system count as free."""
    left = total_memory() - mx.get_active_memory()
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    found = available_bytes() if on_cpu else None
    return left if found is None else found


def device_name() -> str:
    """The default device with its name and memory, such as "CPU (x86_64), 16.8 GB"."""
    device = mx.default_device()
    kind = "CPU" if device.type == mx.DeviceType.cpu else "GPU"
    info = mx.device_info(device)
    name = info.get("device_name") or info.get("architecture") or platform.machine()
    return f"{kind} ({name}), {total_memory() / 1e9:.1f} GB"


def available_kv_bytes(
    weights: int, utilization: float | None = None, limit: int | None = None
) -> int:
    """Bytes for K and V: half of what the weights leave, and never nothing.

    Args:
        utilization: the share of all memory that weights, K and V may take together.
        limit: bytes that the process may use; None is all memory.

    Raises:
        ModelLoadError: that is less than the weights.
    """
    total = total_memory() if limit is None else min(limit, total_memory())
    if limit is not None and total <= weights:
        raise ModelLoadError(
            f"the weights need {weights / 1e9:.2f} GB, and --memory-limit is {limit / 1e9:.2f} GB"
        )
    if utilization is None:
        half = (total - weights) // 2
        return max(MINIMUM, half) if limit is None else half
    left = int(total * utilization) - weights
    if left <= 0:
        raise ModelLoadError(
            f"the weights need {weights / 1e9:.2f} GB, and --gpu-memory-utilization "
            f"{utilization:g} of {total / 1e9:.2f} GB is less"
        )
    return left


def give_memory_back() -> None:
    """Free what nobody refers to any more, such as a model that was unloaded."""
    gc.collect()
    mx.clear_cache()


def use_wired_memory() -> None:
    """Let MLX keep as much memory resident on a Mac's GPU as it recommends, as mlx-lm does:
    large models would be paged out elsewhere."""
    if not mx.metal.is_available():
        return
    recommended = mx.device_info(mx.default_device()).get("max_recommended_working_set_size")
    if recommended:
        mx.set_wired_limit(int(recommended))
