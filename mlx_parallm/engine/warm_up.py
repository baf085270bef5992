"""The first forward, before the first request."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_parallm.engine.model_runner import ModelRunner


def warm_up(runner: ModelRunner) -> None:
    """Compute one token, so that the caches' shapes are known; a row is left behind."""
    cache = runner.cache
    cache.join()
    cache.begin(0, 1, 1, [1])
    logits = runner.model(mx.array(np.zeros((1, 1), dtype=np.int32)), cache=cache.layers)
    cache.commit()
    mx.eval(logits, cache.arrays)
