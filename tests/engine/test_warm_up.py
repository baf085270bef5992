"""What is computed before the first request leaves nothing behind but what was warmed up."""

from __future__ import annotations

from collections.abc import Callable

from mlx_parallm.engine.forward.warm_up import compute_prompts, warm_up
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.models.loader import LoadedModel


def test_prompts_leave_no_row(llama_factory: Callable[..., LoadedModel]) -> None:
    loaded = llama_factory()
    runner = ModelRunner(loaded.model, loaded.vocab_size)
    compute_prompts(runner, (8, 32))
    assert runner.forwards_by_version.num_rows == 0 and runner.cache.nbytes == 0


def test_the_caches_shapes_are_known(llama_factory: Callable[..., LoadedModel]) -> None:
    loaded = llama_factory()
    runner = ModelRunner(loaded.model, loaded.vocab_size)
    warm_up(runner)
    # Two layers, two heads of eight numbers, K and V in float32.
    assert runner.cache.bytes_per_token == 2 * 2 * 8 * 2 * 4
