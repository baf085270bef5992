"""Tiny models that see, one of each family: random weights, processor, tokenizer, no network."""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map
from transformers import AutoTokenizer

from mlx_parallm.models.loader import BUNDLED, resolve
from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.models.vision.video import Video
from tests.models.vision.newer_specs import SPECS as SPECS
from tests.models.vision.specs import PARTS, Config


def picture(seed: int = 0, height: int = 50, width: int = 60) -> Picture:
    """Large squares of random colours."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Picture(squares.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].copy())


def video(seed: int = 0, frames: int = 5, fps: float = 2.0) -> Video:
    """Frames that have nothing to do with each other."""
    shown = tuple(picture(1000 * seed + number, 56, 84) for number in range(frames))
    return Video(shown, tuple(number / fps for number in range(frames)), frames / fps)


@cache
def folder_of(family: str) -> Path:
    """The checkpoint of a family; made once a process."""
    spec, folder = SPECS[family], Path(mkdtemp(prefix=f"{family}-"))
    tokenizer = _write_tokenizer(spec, folder)
    config = _config(family, spec, tokenizer)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(spec["processor"]))
    for name, content in spec.get("files", {}).items():
        (folder / name).write_text(json.dumps(content))
    weights = dict(tree_flatten(_random_model(family, config).parameters()))
    if spec.get("tied"):
        weights.pop("language_model.lm_head.weight", None)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def _write_tokenizer(spec: Config, folder: Path) -> Any:
    named = spec.get("named", {})
    tokenizer = AutoTokenizer.from_pretrained(resolve(BUNDLED), extra_special_tokens=named)
    tokenizer.add_special_tokens({"additional_special_tokens": spec["special"]})
    template = spec.get("template", PARTS).replace("IMAGE", spec["image"])
    tokenizer.chat_template = template.replace("VIDEO", spec.get("video", ""))
    tokenizer.save_pretrained(folder)
    return tokenizer


def _config(family: str, spec: Config, tokenizer: Any) -> Config:
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in spec["ids"].items()}
    text = {**spec["text"], "vocab_size": len(tokenizer)}
    config = {
        "model_type": family.partition(":")[0],
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        **ids,
        **spec.get("config", {}),
        "vision_config": spec["vision"],
    }
    return {**text, **config} if spec.get("flat_text") else {**config, "text_config": text}


def _random_model(family: str, config: Config) -> Any:
    """mlx-vlm's model, with weights large enough that pictures decide what is said."""
    from mlx_vlm.utils import get_model_and_args, update_module_configs

    name = SPECS[family].get("module", family)
    module = importlib.import_module(f"mlx_vlm.models.{name}")
    copied = {**json.loads(json.dumps(config)), "model_type": name}
    copied.setdefault("text_config", {})
    kind, _ = get_model_and_args(copied)
    made = module.ModelConfig.from_dict(copied)
    modules = ["text", "vision", "projector"]
    made = update_module_configs(made, kind, copied, modules)  # type: ignore[no-untyped-call]
    mx.random.seed(7)
    model: Any = module.Model(made)

    def spread(array: mx.array) -> mx.array:
        noise = mx.random.normal(array.shape) * 0.2
        return noise + 1.0 if array.ndim == 1 else noise

    model.update(tree_map(spread, model.parameters()))
    return model
