"""The first forwards, before the first request."""

from __future__ import annotations

import mlx.core as mx

from mlx_parallm.engine.forward.forwards import Work
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.engine.sequence import SamplingParams, Sequence

# Prompt tokens of forwards whose kernels a GPU makes at start, and not at the first request.
_GPU_SIZES = (8, 32, 128, 480)


def warm_up(runner: ModelRunner) -> None:
    """Compute one token, so that the caches' shapes are known, and on a GPU some prompts too.

    A row is left behind.
    """
    if mx.default_device().type == mx.DeviceType.gpu:
        compute_prompts(runner, _GPU_SIZES)
    sequence = Sequence([0], SamplingParams(max_tokens=1, temperature=0.0, seed=0))
    runner.forwards.join(sequence)
    decode = runner.forwards.order([sequence], {}, 0)
    computed = runner.forwards.compute(Work(decode, {}, [], []))
    sampled = runner.sampler.sample(_logits(computed.logits), decode)
    mx.eval(sampled.arrays, runner.cache.arrays)


def compute_prompts(runner: ModelRunner, sizes: tuple[int, ...]) -> None:
    """Compute prompts of so many tokens, one after the other; no row is left behind."""
    for size in sizes:
        sequence = Sequence([0] * (size + 1), SamplingParams(max_tokens=1))
        runner.forwards.join(sequence)
        runner.forwards.compute(Work([], {sequence.id: size}, [sequence], []))
        mx.eval(runner.cache.arrays)
        runner.forwards.release(sequence)


def _logits(logits: mx.array | None) -> mx.array:
    if logits is None:
        raise RuntimeError("the model gave no logits")
    return logits
