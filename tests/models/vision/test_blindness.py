"""Who sends a picture to a model that reads text learns what would see it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.models.sources.sources import BUNDLED, resolve
from mlx_parallm.models.vision import blindness


def test_the_bundled_text_model_names_the_extra_where_it_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text: dict[str, Any] = {"model_type": "llama"}
    monkeypatch.setattr(blindness, "find_spec", lambda name: None)
    told = blindness.why_blind(resolve(BUNDLED), text)
    assert told.startswith(blindness.READS_TEXT)
    assert "mlx_parallm[vision]" in told
    assert blindness.why_blind(Path("elsewhere"), text) == blindness.READS_TEXT
    monkeypatch.setattr(blindness, "find_spec", lambda name: find_spec("json"))
    assert blindness.why_blind(resolve(BUNDLED), text) == blindness.READS_TEXT
