"""A server with several models, each behind a ParrotEngine that says whose it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI

from mlx_parallm.server.fleet.app import create_fleet_app
from mlx_parallm.server.fleet.fleet import Fleet
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.server.conftest import ParrotEngine, Served


@pytest.fixture
def models(tmp_path: Path) -> Callable[..., Path]:
    """models(a=10, b=20) makes a folder of models with weights of so many bytes."""

    def make(**sizes: int) -> Path:
        for name, size in sizes.items():
            folder = tmp_path / "models" / name
            folder.mkdir(parents=True)
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").write_bytes(b"x" * size)
        return tmp_path / "models"

    return make


@pytest.fixture
def serve_fleet() -> Iterator[Callable[..., Any]]:
    """serve_fleet(load_s={}, **settings) starts a fleet; its `engines` are those made, by name."""
    running: list[Served] = []

    def start(load_s: dict[str, float] | None = None, **settings: Any) -> Any:
        engines: dict[str, list[ParrotEngine]] = {}

        def make_app(own: Settings, **hooks: Any) -> FastAPI:
            name = own.model_names[0]
            engine = ParrotEngine(load_s=(load_s or {}).get(name, 0.0))
            engines.setdefault(name, []).append(engine)
            return create_app(own, cast(Any, engine), **hooks)

        options = {"served_model_name": ("first",), "log_level": "warning"} | settings
        app = create_fleet_app(Settings(**options), make_app=make_app)
        served = Served(app, engines, 0.5)
        running.append(served)
        served.wait_ready()
        return served

    yield start
    for served in running:
        served.stop()
    for served in running:
        served.join()


def fleet_of(served: Served) -> Fleet:
    """What is behind the front."""
    return cast(Fleet, served.app.state.server)


def status(served: Served) -> dict[str, str]:
    """The status of each model by its name."""
    return {card["id"]: card["status"] for card in served.http.get("/v1/models").json()["data"]}
