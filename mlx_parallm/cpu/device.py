"""Which processor MLX computes on."""

from __future__ import annotations

import platform

import mlx.core as mx


def is_slow_cpu() -> bool:
    """Whether MLX computes on a processor whose operations are worth replacing."""
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    return bool(on_cpu and platform.machine().lower() in ("x86_64", "amd64"))
