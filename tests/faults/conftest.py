"""Real servers around tiny models in which something can be made to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import mlx.core as mx
import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.conftest import assert_no_leaks, tiny_llama
from tests.engine import mock
from tests.server.conftest import Served

# A text whose token has an embedding that is NaN.
POISON = "~"
ServeFactory = Callable[..., Served]


POISON_ID = mock.byte_tokenizer().encode(POISON, add_special_tokens=False)[0]


def poisoned_llama() -> LoadedModel:
    """A tiny Llama that is NaN from the first POISON on."""
    loaded = tiny_llama()
    weight = loaded.model.model.embed_tokens.weight
    weight[POISON_ID] = mx.full((weight.shape[1],), float("nan"))
    mx.eval(weight)
    loaded.model.model.embed_tokens.weight = weight
    return loaded


@pytest.fixture
def serve() -> Iterator[ServeFactory]:
    """serve(load, settings={...}, **fields of EngineConfig): a server that must not leak."""
    running: list[Served] = []

    def start(
        load: Callable[[], LoadedModel] = poisoned_llama,
        settings: dict[str, Any] | None = None,
        **config: Any,
    ) -> Served:
        engine = Engine(load, EngineConfig(**config))
        options = {"served_model_name": ("tiny",), "log_level": "error"} | (settings or {})
        served = Served(create_app(Settings(**options), engine), engine, 0.5)
        running.append(served)
        served.wait_ready()
        return served

    yield start
    for served in running:
        try:
            if served.engine.state == "ready":
                assert_no_leaks(served.engine)
        finally:
            served.stop()
            served.join()
