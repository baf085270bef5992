"""Shared fixtures: tiny models, a tokenizer made offline, and engines that must not leak.

Hypothesis runs the same examples everywhere; `--hypothesis-profile=explore` looks for
new ones.
"""

from __future__ import annotations

import os

# GPUs compute float32 products in fewer bits by default, and laws compare them. Read when MLX
# is loaded, by processes that tests start too.
os.environ.setdefault("MLX_ENABLE_TF32", "0")

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from hypothesis import HealthCheck, settings
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.models import llama

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel, describe
from tests.engine import mock
from tests.waiting import PATIENCE_S

_COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("default", derandomize=True, max_examples=20, **_COMMON)
settings.register_profile("explore", derandomize=False, max_examples=200, **_COMMON)
settings.load_profile("default")

EngineFactory = Callable[..., Engine]


@pytest.fixture(scope="module")
def no_compile() -> Iterator[None]:
    """On a CPU mx.compile builds a kernel per shape: minutes for models this small."""
    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """mlx-lm's TokenizerWrapper around one token a byte; see engine/mock.py."""
    return mock.byte_tokenizer()


def tiny_llama(seed: int = 0, **config: Any) -> LoadedModel:
    """A random Llama with the byte tokenizer; `config` replaces entries of its config."""
    config = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "vocab_size": mock.VOCAB,
        "max_position_embeddings": mock.CONTEXT,
        "tie_word_embeddings": False,
        "eos_token_id": mock.EOS,
    } | config
    model = llama.Model(llama.ModelArgs.from_dict(config))
    keys = iter(mx.random.split(mx.random.key(seed), len(tree_flatten(model.parameters()))))

    def draw(path: str, value: mx.array) -> mx.array:
        noise: mx.array = mx.random.normal(value.shape, key=next(keys))
        if value.ndim < 2:
            return 1 + 0.2 * noise
        if "embed" in path:
            return 0.5 * noise
        gain = 3.0 if "head" in path else 2.0  # clear gaps between the logits
        return noise * float(gain / value.shape[-1] ** 0.5)

    model.update(tree_map_with_path(draw, model.parameters()))
    model.eval()
    mx.eval(model.parameters())
    return describe(model, mock.byte_tokenizer(), config, "tiny", Path())


@pytest.fixture(scope="session")
def llama_factory() -> Callable[..., LoadedModel]:
    """`tiny_llama`, for tests that cannot import this file."""
    return tiny_llama


@pytest.fixture
def make_engine() -> Iterator[EngineFactory]:
    """Starts engines, stops them at teardown, and checks that nothing leaked (law 4).

    make_engine(loaded or a function that loads, **fields of EngineConfig)
    """
    engines: list[Engine] = []

    def make(load: LoadedModel | Callable[[], LoadedModel], **config: Any) -> Engine:
        function = (lambda: load) if isinstance(load, LoadedModel) else load
        engine = Engine(function, EngineConfig(**config))
        engines.append(engine)
        engine.start()
        engine.wait_ready(PATIENCE_S)
        return engine

    yield make
    for engine in engines:
        try:
            if engine.state == "ready":
                assert_no_leaks(engine)
        finally:
            engine.stop()


@pytest.fixture
def engine(make_engine: EngineFactory) -> Engine:
    """An engine with the mock model: exact, and fast enough for hundreds of sequences."""
    return make_engine(mock.loaded(mock.MockModel(), mock.byte_tokenizer()))


def assert_no_leaks(engine: Engine, timeout_s: float = PATIENCE_S) -> None:
    """Law 4: once everything is answered, no row, no bytes and no sequence is held.

    Every page of the prefix cache is free or cached, and none is locked.
    """
    until = time.monotonic() + timeout_s
    while time.monotonic() < until and _held(engine) != _NOTHING:
        time.sleep(0.005)
    assert _held(engine) == _NOTHING
    if engine.state == "ready" and engine.runner.prefixes is not None:
        tree = engine.runner.prefixes.tree
        engine.call(lambda: tree.check_integrity(idle=True)).result(PATIENCE_S)


_NOTHING = {
    "live": 0,
    "rows": 0,
    "kv_bytes": 0,
    "running": 0,
    "waiting": 0,
    "kv_tokens_used": 0,
}


def _held(engine: Engine) -> dict[str, int]:
    stats = engine.stats()
    return {
        "live": engine.num_live,
        "rows": stats.rows,
        "kv_bytes": stats.kv_bytes,
        "running": stats.running,
        "waiting": stats.waiting,
        "kv_tokens_used": stats.kv_tokens_used,
    }
