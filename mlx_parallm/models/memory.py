"""How many bytes there are, and how many a token takes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_parallm.models.base import BatchedCache, BatchedKVCache

if TYPE_CHECKING:
    from mlx_parallm.engine.model_runner import ModelRunner

MINIMUM = 256 << 20


def total_memory() -> int:
    """Bytes of memory that the default device works in."""
    info = mx.device_info(mx.default_device())
    for name in ("max_recommended_working_set_size", "total_memory", "memory_size"):
        if info.get(name):
            return int(info[name])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def available_kv_bytes(weights: int) -> int:
    """Half of what the weights leave, and never nothing."""
    return max(MINIMUM, (total_memory() - weights) // 2)


def warm_up(runner: ModelRunner) -> None:
    """Compute one token, so that the caches' shapes are known; a row is left behind."""
    cache = runner.cache
    cache.join()
    cache.begin(0, 1, 1, [1])
    logits = runner.model(mx.array(np.zeros((1, 1), dtype=np.int32)), cache=cache.layers)
    cache.commit()
    mx.eval(logits, cache.arrays)


def kv_bytes_per_token(cache: BatchedCache) -> int:
    """Bytes of K and V that one token takes in all layers; 0 for recurrent models.

    Read off the caches after a forward, since architectures differ in what they keep.
    """
    size = 0
    for leaf in cache.leaves:
        if isinstance(leaf, BatchedKVCache) and leaf.capacity:
            size += sum(array.nbytes for array in leaf.arrays) // (cache.slots * leaf.capacity)
    return size
