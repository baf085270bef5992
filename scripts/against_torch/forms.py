"""Folders of tiny models as the families publish theirs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx

from tests.models.vision.tiny_vision import SPECS, folder_of

Config = dict[str, Any]
SIGLIP = "llava, SigLIP"
FAMILIES = (
    *("gemma3", "idefics3", "internvl", "lfm2_vl", "llava", SIGLIP, "mistral3", "pixtral"),
    *("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen3_vl_moe", "smolvlm"),
    *("aya_vision", "gemma4", "gemma4:larger", "gemma4_unified", "glm4v", "glm4v_moe"),
    *("llava_onevision", "qwen3_5", "qwen3_5_moe"),
)
_FILE = "model.safetensors"
_EXPERT = re.compile(r"(.*\.mlp\.experts)\.(\d+)\.(gate|up|down)_proj\.weight")
_TOWER = re.compile(r"^vision_tower\.")
# Bases that nobody has by default, so that one that is not read shows.
_BASE, _LOCAL_BASE = 50000.0, 20000.0
_IMAGENET: Config = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
# What published files say, and the files of the tests leave to mlx-vlm's defaults.
_CONFIGS: dict[str, Config] = {
    # mlx-lm rounds the root of this to bfloat16, as models computed so do; 8 is exact.
    "gemma3": {"hidden_size": 64, "text_config": {"hidden_size": 64}},
    "internvl": {"vision_config": {"attention_bias": True}},
    "mistral3": {"vision_config": {"hidden_act": "silu"}},
    "pixtral": {
        "model_type": "llava",
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "vision_config": {"hidden_act": "silu"},
    },
    SIGLIP: {
        "vision_feature_select_strategy": "full",
        "vision_config": {"model_type": "siglip_vision_model"},
    },
}
_HEADLESS: Config = {"vision_config": {"vision_use_head": False}}
_CONFIGS |= {"aya_vision": _HEADLESS, "llava_onevision": _HEADLESS}
_GEMMA4 = ("gemma4", "gemma4:larger", "gemma4_unified")
_PREPROCESSORS: dict[str, Config] = {
    "internvl": {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "size": {"height": 32, "width": 32},
        "max_patches": 2,
        **_IMAGENET,
    },
    "lfm2_vl": {"resample": 3},
    **{name: {"max_soft_tokens": 70} for name in _GEMMA4},  # the fewest that transformers allows
}
_PROCESSORS: dict[str, Config] = {
    "pixtral": {"image_token": "[IMG]", "processor_class": "PixtralProcessor"},
    SIGLIP: {"vision_feature_select_strategy": "full", "num_additional_image_tokens": 0},
    **{name: {"image_processor": {"max_soft_tokens": 70}} for name in _GEMMA4},
}


def family_of(name: str) -> str:
    """Of the tests' models, the one that a name here is made of."""
    return "llava" if name == SIGLIP else name


def write_published(name: str, folder: Path) -> None:
    """Tokenizer, processor and config.json of a family; its weights are still to come."""
    family = family_of(name)
    shutil.copytree(folder_of(family), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    text = config if SPECS[family].get("flat_text") else config["text_config"]
    text |= {"rope_theta": _BASE}
    if family == "gemma3":
        text |= {"rope_local_base_freq": _LOCAL_BASE}
    _write(folder / "config.json", _merged(config, _CONFIGS.get(name, {})))
    for file, changes in (
        ("preprocessor_config.json", _PREPROCESSORS.get(name, {})),
        ("processor_config.json", _PROCESSORS.get(name, {})),
    ):
        if changes:
            _write(folder / file, _merged(json.loads((folder / file).read_text()), changes))


def publish_weights(saved: Path, folder: Path) -> None:
    """Put weights that transformers 5 has saved into a folder, as they are published.

    Since version 5 CLIP's and SigLIP's have shorter names, and those of qwen3_vl_moe's experts
    are transposed; those of qwen3_5_moe's are published in one piece. All others are the same.
    """
    config = json.loads((folder / "config.json").read_text())
    vision = config["vision_config"]
    weights: dict[str, mx.array] = mx.load(str(saved / _FILE))  # type: ignore[assignment]
    if vision.get("model_type") in ("clip_vision_model", "siglip_vision_model"):
        weights = {_TOWER.sub("vision_tower.vision_model.", n): a for n, a in weights.items()}
    if config["model_type"] == "qwen3_vl_moe":
        weights = {n: mx.swapaxes(a, 1, 2) if ".experts." in n else a for n, a in weights.items()}
    if config["model_type"] == "qwen3_5_moe":
        weights = _joined(weights)
    mx.save_safetensors(str(folder / _FILE), weights, metadata={"format": "pt"})


def _joined(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Experts' weights as two tensors a layer."""
    experts: dict[str, dict[tuple[int, str], mx.array]] = {}
    found = {}
    for name, array in weights.items():
        part = _EXPERT.fullmatch(name)
        if part is None:
            found[name] = array
        else:
            experts.setdefault(part[1], {})[int(part[2]), part[3]] = array
    for layer, arrays in experts.items():
        numbers = range(1 + max(number for number, _ in arrays))
        gates, ups, downs = (
            mx.stack([arrays[number, kind] for number in numbers])
            for kind in ("gate", "up", "down")
        )
        found[f"{layer}.gate_up_proj"] = mx.concatenate([gates, ups], axis=1)
        found[f"{layer}.down_proj"] = downs
    return found


def _merged(config: Config, changes: Config) -> Config:
    both = {
        name: _merged(config[name], value)
        for name, value in changes.items()
        if isinstance(value, dict) and name in config
    }
    return {**config, **changes, **both}


def _write(file: Path, content: Config) -> None:
    file.write_text(json.dumps(content))
