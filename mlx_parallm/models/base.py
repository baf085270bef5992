"""The documented import path of BatchedKVCache and its kin; they live in cache/batch.py."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = "mlx_parallm.cache.batch"


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module(_HOME), name)
