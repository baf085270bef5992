"""A server on the bundled model, for all tests of decisions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mlx_parallm.server.main import build_engine
from mlx_parallm.settings import Settings


@pytest.fixture(scope="package")
def bundled(helpers: Any) -> Iterator[Any]:
    """The bundled model behind HTTP."""
    settings = Settings(served_model_name=("bundled",), log_level="warning")
    yield from helpers.until_idle(settings, build_engine(settings))
