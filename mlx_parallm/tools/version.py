"""`mlx_parallm version`: what is installed and what it computes on."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

from mlx_parallm import __version__
from mlx_parallm.cpu import blas


def version_text() -> str:
    """This package, MLX, mlx-lm, the device, and the BLAS that MLX uses on CPUs; a line each."""
    lines = [f"mlx_parallm {__version__}", *map(_installed, ("mlx", "mlx-lm"))]
    return "\n".join([*lines, f"device {_device()}", f"BLAS {blas.info()}"])


def _installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} is not installed"


def _device() -> str:
    try:
        from mlx_parallm.models.device_memory import device_name
    except ImportError as error:
        return f"unknown: {error}"  # versions are what is asked for where MLX cannot be loaded
    return device_name()


def main(argv: Sequence[str] | None = None) -> int:
    """Print it."""
    argparse.ArgumentParser(prog="mlx_parallm version", description=__doc__).parse_args(argv)
    print(version_text())
    return 0
