"""A Gemma 3 with an mmproj file beside it sees over HTTP what llama.cpp sees."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from mlx_parallm.models.loader import load_model, resolve
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.models import llama_cpp
from tests.models.gguf import tiny_sight
from tests.waiting import wait_until

pytest.importorskip("mlx_vlm", reason="the extra for pictures is not installed")

STEPS = 8
QUESTION = "What is it?"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_PARALLM_CACHE", str(tmp_path / "cache"))


def png(seed: int) -> bytes:
    """Random colours, of the size that the model looks at."""
    colours = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).save(file, format="PNG")
    return file.getvalue()


@contextmanager
def served(file: Path) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(model_path=str(file)))) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield client


def ask(client: TestClient, picture: bytes) -> Any:
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]
    body = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": STEPS,
        "temperature": 0,
        "ignore_eos": True,
        "logprobs": True,
        "return_token_ids": True,
    }
    return client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("turned", [False, True])
def test_it_sees_what_llama_cpp_sees(turned: bool, tmp_path: Path) -> None:
    file = tiny_sight.write_text(tmp_path)
    mmproj = tiny_sight.write_mmproj(tmp_path, turned=turned)
    prompt = f"user: \n\n<__media__>\n\n{QUESTION}"
    with served(file) as client, llama_cpp.serve(file, mmproj=mmproj) as oracle:
        found = set()
        for seed in range(2):
            tokens, tops = oracle.continue_picture(prompt, png(seed), STEPS)
            answer = ask(client, png(seed))
            assert answer.status_code == 200, answer.text
            choice = answer.json()["choices"][0]
            assert choice["token_ids"] == tokens
            rows = zip(choice["logprobs"]["content"], tokens, tops, strict=True)
            for ours, token, top in rows:
                assert ours["logprob"] == pytest.approx(top.get(token, ours["logprob"]), abs=0.02)
            found.add(tuple(tokens))
        assert len(found) == 2  # the pictures decide


def test_what_a_model_does_not_see_with_is_named(tmp_path: Path) -> None:
    file = tiny_sight.write_text(tmp_path)
    tiny_sight.write_mmproj(tmp_path, "qwen2.5vl_merger")
    assert "is of the kind qwen2.5vl_merger, beside a gemma3" in load_model(str(file)).blindness
    tiny_sight.write_mmproj(tmp_path, width=128)  # of another model in the same folder
    assert "belongs to another model" in load_model(str(file)).blindness
    before = resolve(str(file))
    tiny_sight.write_mmproj(tmp_path)
    assert resolve(str(file)) != before
    assert load_model(str(file)).capabilities["vision"]
