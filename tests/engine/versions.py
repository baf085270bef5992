"""Other weights for a model, as they are put into a running engine, and what they must give."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from mlx_parallm.engine.engine import Engine
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.weights import Running, Weights
from mlx_parallm.models.checkpoint.upload import read_body
from tests.engine.driver import Driver
from tests.waiting import PATIENCE_S


def checkpoint_of(model: Any, folder: Path) -> bytes:
    """A model's parameters as the bytes of a safetensors file."""
    file = folder / "saved.safetensors"
    mx.save_safetensors(str(file), dict(tree_flatten(model.parameters())))
    return file.read_bytes()


def fitted(engine: Engine, data: bytes, version: int) -> Weights:
    """A version made of a checkpoint, not yet in use."""
    upload, fitting = read_body(data), engine.fitting()
    digest = upload.digest()

    def work() -> None:
        for _ in fitting.steps(upload):
            pass

    engine.call(work).result(PATIENCE_S)
    return Weights(version, digest, fitting.made)


def putting(
    engine: Engine, weights: Weights, running: Running, put: list[Future[int]] | None = None
) -> Callable[[], None]:
    """For Driver.at_step; what was put is added to `put`."""

    def act() -> None:
        future = engine.put_weights(weights, running)
        if put is not None:
            put.append(future)

    return act


def check_by_version(
    driver: Driver, sequence: Sequence, oracles: list[Any], *, kept: bool = False
) -> None:
    """Every token's log-probability is that of its version, whole texts computed at once.

    Args:
        oracles: by version.
        kept: K and V of the version before stay: the oracle keeps them too.
    """
    tokens, versions = driver.tokens(sequence), sequence.base_versions
    assert len(tokens) == sequence.params.max_tokens == len(versions)
    text, size = sequence.prompt + tokens, len(sequence.prompt)
    tables = [_logprobs(oracle, text) for oracle in oracles]
    if kept and len(set(versions)) > 1:
        old, new = versions[0], versions[-1]
        # The newest token is computed with the step after the switch.
        at = size + versions.index(new) - 1
        tables[new] = _with_kept(oracles[old], oracles[new], text, at)
    for place, entry in enumerate(driver.logprobs(sequence)):
        expected = tables[versions[place]][size + place - 1][tokens[place]]
        assert entry.logprob == pytest.approx(expected, abs=1e-4), (place, versions[place])


def _logprobs(model: Any, text: list[int]) -> np.ndarray:
    return _normal(model(mx.array([text])))


def _with_kept(old: Any, new: Any, text: list[int], at: int) -> np.ndarray:
    cache = make_prompt_cache(old)
    first = old(mx.array([text[:at]]), cache=cache)
    rest = new(mx.array([text[at:]]), cache=cache)
    return _normal(mx.concatenate([first, rest], axis=1))


def _normal(logits: mx.array) -> np.ndarray:
    return np.array(logits[0] - mx.logsumexp(logits[0], axis=-1, keepdims=True))
