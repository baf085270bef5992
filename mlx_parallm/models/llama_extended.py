"""The documented names of Extended Mind's parts, each a door to what does that work here.

Every architecture that mlx-lm has can use memories, so there is no Llama of its own: the cache
of a layer computes the attention (see models/attention.py), and the model stays as it is.

    ExtendedModelArgs         what a request wants of its memories: topk, sim_threshold, layers
    ExtendedAttention         one forward's attention to local tokens and memories together
    ExtendedTransformerBlock  a layer's cache, through which its attention goes
    ExtendedLlamaModel        the manager of a model's memories
    ExtendedModel             a loaded model's own memories: `model.memories`
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "ExtendedModelArgs": ("memory.manager", "MemorySettings"),
    "ExtendedAttention": ("cache.extended_mind", "MemoryForward"),
    "ExtendedTransformerBlock": ("cache.kv_cache", "BatchedKVCache"),
    "ExtendedLlamaModel": ("memory.manager", "MemoryManager"),
    "ExtendedModel": ("memory.attach", "ModelMemories"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, own_name = _HOMES[name]
    return getattr(importlib.import_module(f"mlx_parallm.{module}"), own_name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOMES))
