"""A server with memories, on a real engine with a tiny random model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.settings import Settings
from tests.server.memories.helpers import MEMORIES


@pytest.fixture(scope="module")
def real(
    llama_factory: Callable[..., LoadedModel], helpers: Any, tmp_path_factory: Any
) -> Iterator[Any]:
    """A server whose memories are in a folder."""
    engine = Engine(llama_factory, EngineConfig(max_batch_size=8))
    options = Settings(
        served_model_name=("org/tiny",),
        memory_dir=str(tmp_path_factory.mktemp("memories")),
        use_extended_mind=True,
    )
    yield from helpers.until_idle(options, engine)


@pytest.fixture(autouse=True)
def _empty(real: Any) -> Iterator[None]:
    yield
    assert real.http.delete(MEMORIES, params={"all": "true"}).is_success
