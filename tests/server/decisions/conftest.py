"""A server on the bundled model, for all tests of decisions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from mlx_parallm.server.main import build_engine, create_app
from mlx_parallm.settings import Settings


@pytest.fixture(scope="package")
def bundled(helpers: Any) -> Iterator[Any]:
    """The bundled model behind HTTP."""
    settings = Settings(served_model_name=("bundled",), log_level="warning")
    engine = build_engine(settings)
    served = helpers.Served(create_app(settings, engine), engine, 0.5)
    served.wait_ready()
    yield served
    # Law 4: nothing is left in the engine.
    helpers.wait_until(lambda: engine.num_live == 0 and engine.stats().rows == 0)
    served.stop()
    served.join()
