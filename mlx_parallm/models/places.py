"""Files and folders: those of ours that can be made again, and those that a client names."""

from __future__ import annotations

import os
from pathlib import Path

from mlx_parallm.errors import NotFoundError


def cache_folder(name: str) -> Path:
    """A folder of ours in the user's cache, made if need be.

    It lies in MLX_PARALLM_CACHE, or below XDG_CACHE_HOME, or below ~/.cache.
    """
    own = os.environ.get("MLX_PARALLM_CACHE")
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = Path(own or Path(general) / "mlx_parallm").expanduser() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def named_place(path: str, param: str) -> Path:
    """What a request's field names on this machine; there may be nothing.

    Raises:
        NotFoundError: no system has a path like this: too long, or of an unknown user.
    """
    try:
        place = Path(path).expanduser()
        place.exists()
    except (OSError, RuntimeError, ValueError):
        shown = f"{path[:100]}..." if len(path) > 100 else path
        raise NotFoundError(f"{shown!r} cannot be a path here.", param=param) from None
    return place
