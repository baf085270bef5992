"""Vocabularies of GGUF files: llama.cpp's ids, and those of the library that made them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_parallm.models.loader import load_model
from tests.models import llama_cpp, tiny_gguf, tiny_vocabularies
from tests.models.many_scripts import texts

# Where llama.cpp's WordPiece leaves BERT's way: it keeps the first part only of a sign that
# Unicode takes apart, which for these scripts is not the letter without its accent.
_TAKEN_APART = re.compile(r"[\u0900-\u097f\uac00-\ud7a3]")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(tmp_path / "cache"))


def assert_ids(
    file: Path, own: Callable[[str], list[int]], asked: Callable[[str], bool]
) -> list[str]:
    """Ids of 200 texts: the library's, and for those that are asked llama.cpp's; these texts."""
    tokenizer = load_model(str(file)).tokenizer
    with llama_cpp.serve(file, encoder="bert" in file.name) as oracle:
        for text in texts():
            assert tokenizer.encode(text, add_special_tokens=False) == own(text)
            if asked(text):
                assert tokenizer.encode(text) == oracle.ids(text)
    return [text for text in texts() if asked(text)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byte_fallback": True, "normalization_rule_name": "identity"},
        {"add_dummy_prefix": False, "normalization_rule_name": "nfkc_cf"},
    ],
)
def test_unigrams(options: dict[str, Any], tmp_path: Path) -> None:
    vocabulary, own = tiny_vocabularies.sentence_piece(texts(), "unigram", **options)
    file = tiny_gguf.write_vocabulary(tmp_path / "bert-unigram.gguf", vocabulary)
    # llama.cpp writes no unknown letters as bytes and always has a space in front, as T5 and
    # XLM-RoBERTa were trained. SentencePiece does both as the file says.
    in_bytes = {i for i in range(own.get_piece_size()) if own.is_byte(i)}
    front = options.get("add_dummy_prefix", True)
    asked = assert_ids(
        file, own.encode, lambda text: front and in_bytes.isdisjoint(own.encode(text))
    )
    assert len(asked) >= (160 if front else 0)
    assert options or len(asked) == 200


def test_byte_pairs_with_scores(tmp_path: Path) -> None:
    """Llama 2's kind, with its settings."""
    vocabulary, own = tiny_vocabularies.sentence_piece(
        texts(),
        "bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    )
    file = tiny_gguf.write_vocabulary(tmp_path / "llama.gguf", vocabulary)
    assert len(assert_ids(file, own.encode, lambda text: True)) == 200


def test_merged_letters(tmp_path: Path) -> None:
    """Gemma 4's kind."""
    vocabulary, own = tiny_vocabularies.merged_letters(texts())
    file = tiny_gguf.write_vocabulary(tmp_path / "gemma4.gguf", vocabulary)

    def encode(text: str) -> list[int]:
        return list(own.encode(text, add_special_tokens=False).ids)

    assert len(assert_ids(file, encode, lambda text: True)) == 200
    tokenizer = load_model(str(file)).tokenizer
    bos = tokenizer.bos_token_id
    for text in (*texts(), "a  b\n\n\n c   ", "\u2581"):
        ids = tokenizer.encode(text)
        assert ids[0] == bos
        assert tokenizer.decode(ids[1:]) == text.replace("\u2581", " ")


def test_word_pieces(tmp_path: Path) -> None:
    vocabulary, own = tiny_vocabularies.word_piece(texts())
    file = tiny_gguf.write_vocabulary(tmp_path / "bert.gguf", vocabulary)

    def encode(text: str) -> list[int]:
        return list(own.encode(text, add_special_tokens=False).ids)

    asked = assert_ids(file, encode, lambda text: not _TAKEN_APART.search(text))
    assert len(asked) >= 160


def test_an_encoder_has_llama_cpps_embeddings(tmp_path: Path) -> None:
    vocabulary, _ = tiny_vocabularies.word_piece(texts())
    file = tiny_gguf.write_vocabulary(tmp_path / "bert.gguf", vocabulary)
    loaded = load_model(str(file))
    assert loaded.pooling == "mean"
    with llama_cpp.serve(file, encoder=True) as oracle:
        for text in texts(40):
            ids = loaded.tokenizer.encode(text)[:120]
            pooled = np.array(loaded.model(mx.array([ids]))[0].mean(axis=0))
            # Its GELU is a table of 16 bits.
            np.testing.assert_allclose(
                pooled / np.linalg.norm(pooled), oracle.embedding(ids), atol=3e-3
            )
