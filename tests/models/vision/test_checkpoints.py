"""Checkpoints that transformers 5 has saved say what those of the older form say."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

pytest.importorskip("mlx_vlm")

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.loader import load_model
from mlx_parallm.models.vision.checkpoints import with_older_weights
from tests.engine.driver import Driver
from tests.engine.pictures.seeing import PICTURE, sequence_of
from tests.models.vision.tiny_vision import folder_of, picture
from tests.waiting import PATIENCE_S

TEXT = f"user: {PICTURE} What?\nassistant:"
Weights = dict[str, mx.array]

pytestmark = pytest.mark.usefixtures("no_compile")


def newer_rope(text: dict[str, Any]) -> None:
    rope = {"rope_theta": text.pop("rope_theta"), "rope_type": "default"}
    text["rope_parameters"] = {**rope, **(text.pop("rope_scaling", None) or {})}


def newer_config(family: str, config: dict[str, Any]) -> dict[str, Any]:
    """As transformers 5 writes it: text in a part of its own, tied or not as a whole."""
    inside = config.pop("text_config", None)
    if inside is None:  # Qwen2's
        names = ("model_type", "vision_config", "image_token_id", "video_token_id")
        inside = {n: v for n, v in config.items() if n not in names} | {"model_type": "qwen2"}
        config = {n: config[n] for n in names}
        config["vision_config"]["model_type"] = f"{family}_vision"
    tied = inside.pop("tie_word_embeddings", False)
    newer_rope(inside)
    if "num_experts" in inside:
        inside["num_local_experts"] = inside.pop("num_experts")
    return {**config, "text_config": inside, "tie_word_embeddings": tied}


def newer_weights(weights: Weights) -> Weights:
    found: Weights = {}
    for name, array in weights.items():
        new = re.sub(r"^vision_tower\.vision_model\.(?!transformer)", "vision_tower.", name)
        if ".switch_mlp." not in new:
            found[new] = array
    for name in [n for n in weights if n.endswith("switch_mlp.gate_proj.weight")]:
        prefix = name.removesuffix("switch_mlp.gate_proj.weight")
        parts = [weights[f"{prefix}switch_mlp.{kind}_proj.weight"] for kind in ("gate", "up")]
        found[f"{prefix}experts.gate_up_proj"] = mx.concatenate(parts, axis=1)
        found[f"{prefix}experts.down_proj"] = weights[f"{prefix}switch_mlp.down_proj.weight"]
    found["vision_tower.head.probe"] = mx.zeros((1, 1, 4))  # of SigLIP, which nobody uses here
    return found


def newer_folder(family: str, place: Path) -> Path:
    folder = place / family
    shutil.copytree(folder_of(family), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(newer_config(family, config)))
    file = str(folder / "model.safetensors")
    weights: Weights = mx.load(file)  # type: ignore[assignment]
    mx.eval(weights)
    mx.save_safetensors(file, newer_weights(weights), metadata={"format": "mlx"})
    return folder


def said(family: str, folder: Path) -> list[float]:
    config = EngineConfig(max_batch_size=4, kv_cache_memory=64 << 20)
    engine = Engine(lambda: load_model(str(folder)), config)
    engine.start()
    engine.wait_ready(PATIENCE_S)
    try:
        driver = Driver(engine)
        settings = {"max_tokens": 4, "ignore_eos": True, "logprobs": 0}
        sequence = sequence_of(engine, family, TEXT, [picture(1)], **settings)
        driver.run(sequence)
        return [score.logprob for score in driver.logprobs(sequence)]
    finally:
        engine.stop()


@pytest.mark.parametrize("family", ["idefics3", "llava", "mistral3", "qwen2_vl", "qwen3_vl_moe"])
def test_newer_checkpoints_say_the_same(family: str, tmp_path: Path) -> None:
    new = said(family, newer_folder(family, tmp_path))
    assert np.allclose(new, said(family, folder_of(family)), atol=1e-5)


def test_an_activation_that_nobody_computes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    shutil.copytree(folder_of("llava"), folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "relu6"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match="activation relu6 is not supported"):
        load_model(str(folder))


def test_a_tower_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "llava"
    shutil.copytree(folder_of("llava"), folder)
    file = str(folder / "model.safetensors")
    weights: Weights = mx.load(file)  # type: ignore[assignment]
    mx.eval(weights)
    kept = {n: a for n, a in weights.items() if "layers.1.mlp.fc1" not in n or "vision" not in n}
    mx.save_safetensors(file, kept, metadata={"format": "mlx"})
    with pytest.raises(ModelLoadError, match="2 weights are missing"):
        load_model(str(folder))


def test_experts_that_are_saved_one_by_one_are_one_tensor() -> None:
    layer = "model.language_model.layers.0.mlp"
    saved = {f"{layer}.experts.{n}.up_proj.weight": mx.full((3, 2), n) for n in (1, 10, 0, 2)}
    found = with_older_weights({**saved, "other": mx.zeros(1)}, {"model_type": "qwen3_5_moe"})
    stacked = found[f"{layer}.switch_mlp.up_proj.weight"]
    assert stacked[:, 0, 0].tolist() == [0, 1, 2, 10]
    assert stacked.shape == (4, 3, 2)
    assert set(found) == {"other", f"{layer}.switch_mlp.up_proj.weight"}
