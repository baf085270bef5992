"""The document's `device="cuda"`: MLX computes on one device, which is chosen once."""

from __future__ import annotations

import mlx.core as mx

from mlx_parallm.errors import UnsupportedError

_GPUS = ("gpu", "cuda", "mps", "metal")


def check_device(name: str | None) -> None:
    """Make sure that `name` is the device that MLX computes on; None is whichever it is.

    Raises:
        UnsupportedError: another device.
    """
    here = "cpu" if mx.default_device().type == mx.DeviceType.cpu else "gpu"
    kind = (name or here).partition(":")[0]
    if kind != here and not (here == "gpu" and kind in _GPUS):
        raise UnsupportedError(f"device {name!r}: MLX computes on the {here} here", param="device")
