"""The process in which grammars are tried."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from mlx_parallm.engine.grammar import Grammar
from mlx_parallm.engine.grammar.trial import Trial
from tests.engine import mock

SLOW: dict[str, Any] = {"patternProperties": {f"^{i}a.*b": {} for i in range(900)}}


def test_a_grammar_that_takes_too_long_takes_no_new_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Starting one would hold the server's threads up."""
    trial = Trial(mock.VOCAB, [], max_seconds=0.25)
    trial.start()
    monkeypatch.setattr(subprocess, "Popen", None)
    try:
        for pattern in ("a+", "b+"):
            assert trial.error(Grammar.json_schema(SLOW).source) is None
            assert trial.error(Grammar.regex(pattern).source) == ""
        assert "uniqueItems" in (
            trial.error(Grammar.json_schema({"uniqueItems": True}).source) or ""
        )
    finally:
        trial.close()
