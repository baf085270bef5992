"""How many bytes there are, and how many a token takes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_parallm.models.base import BatchedKVCache

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


def kv_bytes_per_token(runner: ModelRunner) -> int:
    """Bytes of K and V that one token takes in all layers; 0 for recurrent models.

    Measured with a forward of one token, since architectures differ in what
    they keep. The forward warms the model up as well.
    """
    cache = runner.cache
    cache.join()
    cache.begin(0, 1, 1, [1])
    logits = runner.model(mx.array(np.zeros((1, 1), dtype=np.int32)), cache=cache.layers)
    mx.eval(logits, cache.arrays)
    size = 0
    for leaf in cache.leaves:
        if isinstance(leaf, BatchedKVCache) and leaf.capacity:
            size += sum(array.nbytes for array in leaf.arrays) // (cache.slots * leaf.capacity)
    runner.reset()
    return size
