"""The first forward, before the first request."""

from __future__ import annotations

import mlx.core as mx

from mlx_parallm.engine.forwards import Work
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.engine.sequence import SamplingParams, Sequence


def warm_up(runner: ModelRunner) -> None:
    """Compute one token, so that the caches' shapes are known; a row is left behind."""
    sequence = Sequence([0], SamplingParams(max_tokens=1, temperature=0.0, seed=0))
    runner.forwards.join(sequence)
    decode = runner.forwards.order([sequence], {}, 0)
    computed = runner.forwards.compute(Work(decode, {}, [], []))
    mx.eval(computed.logits, runner.cache.arrays)
