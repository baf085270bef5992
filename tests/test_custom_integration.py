"""The advanced engine's document: "Custom Integration", and its start script."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from mlx_parallm.continuous_batching import AsyncContinuousBatchingEngine, BatchConfig
from mlx_parallm.options.loading import load_settings
from mlx_parallm.settings import Settings
from mlx_parallm.speculative_decoding import SpeculativeConfig, SpeculativeDecodingEngine
from mlx_parallm.utils import batch_generate, close, load

SCRIPT = Path(__file__).parents[1] / "scripts" / "start-advanced-server.sh"
PROMPTS = ["The snake is", "3 + 4 =", "Hello", "What is the capital of"]


@pytest.fixture(scope="module")
def plain() -> dict[str, str]:
    """What the bundled model says to each prompt, without speculation."""
    model, tokenizer = load("bundled")
    answers = batch_generate(model, tokenizer, PROMPTS, max_tokens=16, temp=0.0)
    close(model)
    return dict(zip(PROMPTS, answers, strict=True))


def test_speculative_decoding(plain: dict[str, str]) -> None:
    config = SpeculativeConfig(
        draft_model_path="bundled/draft", target_model_path="bundled", max_draft_tokens=5
    )
    engine = SpeculativeDecodingEngine(config)
    try:
        result = engine.generate(PROMPTS[0], max_tokens=16, temp=0.0)
        assert result.text == plain[PROMPTS[0]]
        assert 0 < len(result.token_ids) <= 16
        assert 0 <= engine.get_stats()["acceptance_rate"] <= 1
    finally:
        engine.close()


def test_continuous_batching(plain: dict[str, str]) -> None:
    model, tokenizer = load("bundled")

    async def run() -> list[str]:
        config = BatchConfig(max_batch_size=8, timeout_ms=50)
        engine = AsyncContinuousBatchingEngine(model, tokenizer, config)
        return await engine.generate_batch(list(PROMPTS), max_tokens=16)

    try:
        assert asyncio.run(run()) == list(plain.values())
    finally:
        close(model)


def _started(tmp_path: Path, *flags: str) -> Settings:
    """The settings of the server that the script starts."""
    stand_in = tmp_path / "serve"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o755)
    answer = subprocess.run(
        [str(SCRIPT), *flags],
        env={"MLX_PARALLM_SERVE": str(stand_in), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return load_settings(answer.stdout.splitlines(), {})


def test_the_script_alone(tmp_path: Path) -> None:
    settings = _started(tmp_path, "--model", "org/model with a space")
    assert settings.model_path == "org/model with a space"
    assert settings.speculation is None


def test_the_script_with_a_draft(tmp_path: Path) -> None:
    flags = ("--model=org/model", "--draft-model", "org/draft")
    settings = _started(tmp_path, *flags, "--use-speculative")
    assert (settings.model_path, settings.draft_model) == ("org/model", "org/draft")
    assert settings.speculation == "draft"
    assert _started(tmp_path, *flags).speculation is None
    assert _started(tmp_path, "--use-speculative").speculation == "ngram"


def test_the_script_with_all_its_flags(tmp_path: Path) -> None:
    settings = _started(
        tmp_path,
        *("--model", "your-model-path", "--draft-model", "your-draft-model"),
        *("--max-batch-size", "16", "--batch-timeout-ms", "100", "--port", "8080"),
        *("--quantize", "4bit"),
    )
    assert (settings.max_batch_size, settings.batch_timeout_ms, settings.port) == (16, 100, 8080)
    assert settings.quantize == "4bit"


def test_the_scripts_help() -> None:
    answer = subprocess.run([str(SCRIPT), "--help"], capture_output=True, text=True, check=True)
    for flag in ("--model", "--draft-model", "--use-speculative", "--batch-timeout-ms", "--port"):
        assert flag in answer.stdout
