"""The names of the MILI API reference, in one place: `from mlx_parallm.mili import WeightLoader`.

Most of them live in the rooms that use them too; what only that document has is here. Tensors
are MLX arrays. Everything is looked up on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "Qwen3Config": "models.qwen3_config",
    "WeightLoader": "mili.weight_loader",
    "KVCacheAllocator": "cache.prefixes.pages",
    "PagedKVCache": "cache.prefixes.pages",
    "RadixAttentionCache": "cache.prefixes.prefix_cache",
    "QwenTokenizer": "models.tokenizer",
    "get_tokenizer": "models.tokenizer",
    "ContinuousBatchScheduler": "engine.requests",
    "RequestMetadata": "engine.requests",
    "RequestPhase": "engine.requests",
    "Sampler": "engine.sampling.sampler",
    "Qwen3Model": "mili.qwen3_model",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"mlx_parallm.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
