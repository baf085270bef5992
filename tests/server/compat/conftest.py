"""What the tests of several APIs share."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture
def thinker(serve: Any) -> Any:
    """A server whose model thinks between <think> and </think>."""
    server = serve()
    tokenizer = server.engine.loaded.tokenizer
    for place, marker in (("start", "<think>"), ("end", "</think>")):
        ids = tuple(tokenizer.encode(marker, add_special_tokens=False))
        setattr(tokenizer, f"_think_{place}", marker)
        setattr(tokenizer, f"_think_{place}_tokens", ids)
    return server
