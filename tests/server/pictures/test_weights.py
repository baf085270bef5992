"""New weights for a model that sees: its text model's are replaced, its tower's have to stay."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

pytest.importorskip("mlx_vlm")

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import load_model
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings
from tests.models.vision.tiny_vision import folder_of

WEIGHTS = "/v1/models/tiny/weights"
TEXT, EYES = "language_model.", "vision_tower."

pytestmark = pytest.mark.usefixtures("no_compile")


@pytest.fixture
def server(helpers: Any) -> Iterator[Any]:
    path = str(folder_of("llava"))
    engine = Engine(lambda: load_model(path), EngineConfig(max_batch_size=4))
    served = helpers.Served(create_app(Settings(served_model_name=("tiny",)), engine), engine, 0.5)
    served.wait_ready()
    yield served
    served.stop()
    served.join()


def checkpoint(folder: Path, *changed: str, without: str = " ") -> str:
    """The model's own, with other values below these names, and without some."""
    made = folder / f"{len(list(folder.iterdir()))}"
    shutil.copytree(folder_of("llava"), made)
    file = str(made / "model.safetensors")
    weights: dict[str, mx.array] = mx.load(file)  # type: ignore[assignment]
    weights = {
        name: array * 1.5 if name.startswith(changed) else array + 0
        for name, array in weights.items()
        if not name.startswith(without)
    }
    mx.eval(weights)
    mx.save_safetensors(file, weights, metadata={"format": "mlx"})
    return str(made)


def said(server: Any, files: Any) -> list[float]:
    parts = [
        {"type": "image_url", "image_url": {"url": files.url(files.noisy())}},
        {"type": "text", "text": "What is it?"},
    ]
    body = {"messages": [{"role": "user", "content": parts}], "max_tokens": 3, "temperature": 0}
    answer = server.ok("/v1/chat/completions", **body, logprobs=True, ignore_eos=True)
    return [one["logprob"] for one in answer["choices"][0]["logprobs"]["content"]]


def test_the_text_models_are_replaced_and_another_tower_is_refused(
    server: Any, files: Any, tmp_path: Path
) -> None:
    before = said(server, files)
    refused = server.http.put(WEIGHTS, json={"path": checkpoint(tmp_path, TEXT, EYES)})
    assert refused.status_code == 400, refused.text
    message = refused.json()["error"]["message"]
    assert message.startswith(EYES)
    assert "cannot be replaced while it runs" in message
    assert said(server, files) == before

    whole = server.http.put(WEIGHTS, json={"path": checkpoint(tmp_path, TEXT)})
    assert whole.status_code == 200, whole.text
    changed = said(server, files)
    assert changed != before, "nor does a prefix with the picture of the version before serve it"
    alone = server.http.put(WEIGHTS, json={"path": checkpoint(tmp_path, TEXT, without=EYES)})
    assert alone.status_code == 200, alone.text
    assert said(server, files) == pytest.approx(changed, abs=1e-5)
