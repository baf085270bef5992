"""An engine for each family that a module's own fixture `family` names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import Engine


@pytest.fixture(scope="module")
def engine(family: str) -> Iterator[Engine]:
    from tests.engine.pictures.seeing import engine_of

    made = engine_of(family)
    yield made
    made.stop()
