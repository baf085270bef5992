"""A tiny random model, and a running server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import bench_models
import pytest
from benchlib.servers import our_command, spawn


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random model."""
    return bench_models.ensure("tiny", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def url(tiny: Path) -> Iterator[str]:
    """A running server of it."""
    with spawn("tiny", our_command(tiny)) as server:
        yield server.url
