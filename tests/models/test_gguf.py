"""GGUF files: the same values, ids and logits as llama.cpp has; what cannot be read is named."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.blocks import GROUP, pack
from mlx_parallm.models.gguf.pre_tokenizers import WORD_KINDS
from mlx_parallm.models.loader import load_model, resolve
from tests.models import llama_cpp, tiny_gguf
from tests.models.compare_gguf import logprobs
from tests.models.many_scripts import SENTENCES as TEXTS


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0])
def test_packed_blocks_have_the_very_same_values(kind: Kind) -> None:
    values = np.random.default_rng(1).standard_normal((3, 5, 96)).astype(np.float32)
    data = quants.quantize(values, kind)
    packed = pack(data, kind)
    scales, biases = (
        mx.array(a).astype(mx.float32) for a in (packed.scales, packed.biases) if a is not None
    )
    weight = mx.array(packed.weight)
    found = mx.dequantize(weight, scales, biases, group_size=GROUP, bits=packed.bits)
    assert np.array_equal(np.array(found), quants.dequantize(data, kind))


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.Q5_0, Kind.F16])
def test_packed_files_stay_packed_and_mean_the_same(kind: Kind, tmp_path: Path) -> None:
    file = tiny_gguf.write(tmp_path / "packed.gguf", "llama", kind)
    packed = load_model(str(file))
    plain = load_model(str(llama_cpp.unpacked(file, tmp_path / "plain.gguf")))
    ids = list(range(5, 40))
    assert np.abs(logprobs(packed, ids) - logprobs(plain, ids)).max() < 1e-4
    stored = sum(part.stat().st_size for part in packed.folder.glob("*.safetensors"))
    assert stored < 1.2 * sum(t.n_bytes for t in gguf.GGUFReader(file).tensors) + 20_000


def test_the_second_start_reads_the_folder(tmp_path: Path, cache: Path) -> None:
    file = tiny_gguf.write(tmp_path / "tiny.gguf", "qwen2")
    folder = resolve(str(file))
    assert folder.is_relative_to(cache)
    made = (folder / "config.json").stat().st_mtime_ns
    assert resolve(str(file)) == folder
    assert (folder / "config.json").stat().st_mtime_ns == made
    tiny_gguf.write(file, "qwen2", tied=True)
    assert resolve(str(file)) != folder


def test_a_folder_of_several_files(tmp_path: Path) -> None:
    for kind in (Kind.Q8_0, Kind.Q4_0):
        tiny_gguf.write(tmp_path / f"tiny-{kind.name}.gguf", "qwen3", kind)
    assert "tiny-Q4_0" in resolve(f"{tmp_path}:q4_0").name
    with pytest.raises(ModelLoadError, match=r"several GGUF files fit.*tiny-Q8_0\.gguf"):
        resolve(str(tmp_path))
    with pytest.raises(ModelLoadError, match="no GGUF file fits; there are: tiny-Q4_0"):
        resolve(f"{tmp_path}:Q6_K")


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    file = tiny_gguf.write(tmp_path / "a.gguf", "mamba")
    with pytest.raises(
        ModelLoadError, match="architecture mamba are not supported, only bert, cohere2"
    ):
        resolve(str(file))
    tiny_gguf.write(file, "llama", pre="viking")
    with pytest.raises(ModelLoadError, match="in the way viking"):
        resolve(str(file))
    tiny_gguf.write(file, "llama", values={"rope.scaling.type": "longrope"})
    with pytest.raises(ModelLoadError, match="kind longrope"):
        resolve(str(file))
    file.write_bytes(b"GGUF and nothing else")
    with pytest.raises(ModelLoadError, match="not readable as a GGUF file"):
        resolve(str(file))
    part = tmp_path / "b-00001-of-00002.gguf"
    part.write_bytes(b"")
    with pytest.raises(ModelLoadError, match=r"part b-00002-of-00002\.gguf is missing"):
        resolve(str(part))


def test_tokens_that_a_file_suppresses_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"tokenizer.ggml.suppress_tokens": [7, 9]}
    resolve(str(tiny_gguf.write(tmp_path / "a.gguf", "llama", values=values)))
    assert "tokens that the file suppresses may be said here: [7, 9]" in capsys.readouterr().err


@pytest.mark.parametrize("pre", {kind: pre for pre, kind in WORD_KINDS.items()}.values())
def test_words_fall_as_in_llama_cpp(pre: str, tmp_path: Path) -> None:
    file = tiny_gguf.write(tmp_path / "tiny.gguf", "llama", pre=pre)
    tokenizer = load_model(str(file)).tokenizer
    with llama_cpp.serve(file) as oracle:
        for text in TEXTS:
            assert tokenizer.encode(text, add_special_tokens=False) == oracle.ids(text)
            assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentence_pieces_are_llama_cpps(space_prefix: bool, tmp_path: Path) -> None:
    words = Counter(word for text in TEXTS[:9] for word in text.split())
    parts = Counter(
        part
        for word in words
        for whole in (f"\u2581{word}",)
        for size in range(2, 7)
        for start in range(len(whole) - size + 1)
        for part in (whole[start : start + size],)
    )
    letters = sorted({letter for text in TEXTS[:9] for letter in text if letter > " "})
    pieces = [part for part, _ in parts.most_common(1500)] + ["\u2581", *letters]
    file = tmp_path / "tiny.gguf"
    tiny_gguf.write_sentence_piece(file, pieces, space_prefix=space_prefix)
    tokenizer = load_model(str(file)).tokenizer
    with llama_cpp.serve(file) as oracle:
        for text in TEXTS:
            ids = tokenizer.encode(text)
            assert ids == oracle.ids(text)
            assert ids[0] == tokenizer.bos_token_id
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
