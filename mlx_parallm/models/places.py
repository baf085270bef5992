"""Where files that can be made again are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """A folder of ours in the user's cache, made if need be.

    It lies in MLX_PARALLM_CACHE, or below XDG_CACHE_HOME, or below ~/.cache.
    """
    own = os.environ.get("MLX_PARALLM_CACHE")
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(own or Path(general) / "mlx_parallm").expanduser() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
