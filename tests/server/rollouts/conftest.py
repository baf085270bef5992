"""A server of a tiny model whose head of one label gives rewards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.heads import ClassificationHead
from mlx_parallm.models.loader import LoadedModel
from tests.models.lora.adapters import ALL, mlx_lm_adapter


@pytest.fixture(scope="module")
def head(llama_factory: Callable[..., LoadedModel]) -> ClassificationHead:
    size = llama_factory().config["hidden_size"]
    weight = np.random.default_rng(1).standard_normal((1, size)).astype(np.float32)
    return ClassificationHead(weight, np.ones(1, np.float32), ("reward",))


@pytest.fixture(scope="module")
def served(
    llama_factory: Callable[..., LoadedModel],
    head: ClassificationHead,
    helpers: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """With the adapter `policy`, and two rows."""
    from mlx_parallm.server.main import create_app
    from mlx_parallm.settings import Settings

    def load() -> LoadedModel:
        loaded = llama_factory()
        loaded.head = head
        return loaded

    folder: Path = tmp_path_factory.mktemp("policy")
    mlx_lm_adapter(folder, llama_factory().model, 1, keys=list(ALL))
    engine = Engine(load, EngineConfig(max_batch_size=2, prefix_cache_memory=1 << 20))
    settings = Settings(served_model_name=("base",), lora_modules=(f"policy={folder}",))
    running = helpers.Served(create_app(settings, engine), engine, 0.5)
    running.wait_ready()
    yield running
    running.stop()
    running.join()
