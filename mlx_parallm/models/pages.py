"""The documented import path of PagedKVCache and KVCacheAllocator; they live in cache/pages.py."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = "mlx_parallm.cache.prefixes.pages"


def __getattr__(name: str) -> Any:
    return getattr(importlib.import_module(_HOME), name)
