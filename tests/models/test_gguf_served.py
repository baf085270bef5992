"""A GGUF file served with what any model has: a draft, adapters, memories, packing; split files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from fastapi.testclient import TestClient
from gguf import GGMLQuantizationType as Kind

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import load_model, resolve
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.models import llama_cpp, tiny_gguf
from tests.models.compare_gguf import logprobs
from tests.models.lora.adapters import ALL, mlx_lm_adapter
from tests.waiting import wait_until

PROMPT = "one two three one two three one two"
MEMORY = "The code of Mira is 57. The code of Tom is 23. " * 4


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(tmp_path / "cache"))


@contextmanager
def served(**settings: Any) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(served_model_name=("base",), **settings))) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield client


def said(client: TestClient, **fields: Any) -> list[int]:
    body = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    answer = client.post("/v1/completions", json=body | {"return_token_ids": True} | fields)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def all_answers(client: TestClient) -> list[list[int]]:
    """Plain, with an adapter, and with a memory."""
    path = "/v1/models/base/memories"
    assert client.post(path, json={"collection": "codes", "text": MEMORY}).status_code == 202
    wait_until(lambda: bool(client.get(path, params={"collection": "codes"}).json().get("data")))
    memory = {"collections": ["codes"], "topk": 16}
    return [said(client), said(client, model="mine"), said(client, memory=memory)]


def test_draft_adapter_and_memory(tmp_path: Path) -> None:
    """Each answer of the packed file is that of its plain copy without a draft."""
    packed = tiny_gguf.write(tmp_path / "packed.gguf", "llama", Kind.Q8_0)
    plain = llama_cpp.unpacked(packed, tmp_path / "plain.gguf")
    adapter = mlx_lm_adapter(tmp_path / "mine", load_model(str(plain)).model, 1, keys=list(ALL))
    common = {"lora_modules": (f"mine={adapter}",)}
    with served(model_path=str(plain), **common) as client:
        right = all_answers(client)
    with served(model_path=str(packed), draft_model=str(packed), **common) as client:
        assert all_answers(client) == right
        stats = client.get("/v1/stats").json()["speculative_stats"]
        assert stats["drafted_tokens"] > 0
    assert len({tuple(answer) for answer in right}) == 3


def test_packed_while_loading(tmp_path: Path) -> None:
    plain = tiny_gguf.write(tmp_path / "plain.gguf", "qwen3")
    ids = list(range(5, 40))
    packed = load_model(str(plain), quantize="8bit")
    assert packed.quantization is not None
    assert np.abs(logprobs(packed, ids) - logprobs(load_model(str(plain)), ids)).mean() < 0.1
    file = tiny_gguf.write(tmp_path / "packed.gguf", "qwen3", Kind.Q4_0)
    with pytest.raises(ModelLoadError, match="--quantize 8bit: this checkpoint is quantised"):
        load_model(str(file), quantize="8bit")


@pytest.mark.parametrize("parts", [2, 3])
def test_a_split_file_is_the_whole_one(parts: int, tmp_path: Path) -> None:
    whole = tiny_gguf.write(tmp_path / "whole.gguf", "llama", Kind.Q4_1)
    first = split(whole, tmp_path / "split", parts)
    ids = list(range(5, 40))
    assert np.array_equal(
        logprobs(load_model(str(first)), ids), logprobs(load_model(str(whole)), ids)
    )
    assert resolve(str(tmp_path / "split")) == resolve(str(first))  # by the folder too
    with llama_cpp.serve(first) as oracle:
        assert len(oracle.continue_greedily(ids, 4)[0]) == 4


def split(file: Path, folder: Path, parts: int) -> Path:
    """The first of several files, as llama.cpp's tool for it names and fills them."""
    folder.mkdir()
    tensors = llama_cpp.tensors(file)
    each = -(-len(tensors) // parts)
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama", split_max_tensors=each)
    llama_cpp.copy_metadata(file, writer)
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(list(folder.iterdir())) == parts
    return folder / f"tiny-00001-of-{parts:05}.gguf"
