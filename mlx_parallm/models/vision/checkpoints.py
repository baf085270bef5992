"""Checkpoints of models that see as transformers writes them, by names that mlx's programs read."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import mlx.core as mx

from mlx_parallm.models.vision.families import Family

Config = dict[str, Any]
Weights = dict[str, mx.array]

_ENCODERS = ("clip_vision_model", "siglip_vision_model")
_FLAT = ("qwen2_vl", "qwen2_5_vl")  # mlx-vlm wants their text_config outside
_HEAD = re.compile(r"(^|\.)lm_head\.")
_EXPERTS = re.compile(r"\.experts\.(gate_up_proj|down_proj)$")
_EXPERT = re.compile(r"(.*\.mlp)\.experts\.(\d+)\.((?:gate|up|down)_proj\.weight)")
_INNER = re.compile(r"^model\.(vision_tower\.|multi_modal_projector\.)")
_TEXT = re.compile(r"^model\.language_model\.")
# transformers 5 leaves out a level of the towers that it shares between models.
_SHORT = re.compile(r"^vision_tower\.(?=embeddings\.|encoder\.|pre_layrnorm\.|post_layernorm\.)")


def with_head(config: Config, names: Collection[str]) -> Config:
    """The config, with the head of the text model as the checkpoint has it.

    transformers decides by the whole model's `tie_word_embeddings`, mlx-lm by the text model's,
    and both have defaults of their own. A head that is tied is not saved.

    Args:
        names: of the checkpoint's tensors.
    """
    tied = {"tie_word_embeddings": not any(_HEAD.search(name) for name in names)}
    text = config.get("text_config")
    inner = {"text_config": {**text, **tied}} if isinstance(text, dict) else {}
    return {**config, **tied, **inner}


def for_tower(config: Config, family: Family) -> Config:
    """The config that mlx-vlm's model of the family reads."""
    vision, kind = dict(config["vision_config"]), family.kind or config["model_type"]
    if vision.get("model_type") == "pixtral":
        vision.setdefault("head_dim", vision["hidden_size"] // vision["num_attention_heads"])
    if kind.startswith("qwen"):
        vision["model_type"] = kind  # transformers 5 writes a name of the tower's own
    outside = config.get("text_config", {}) if kind in _FLAT else {}
    return {**outside, **config, "model_type": kind, "vision_config": vision}


def with_older_weights(weights: Mapping[str, mx.array], config: Config) -> Weights:
    """A checkpoint's tensors by their older names, and in their older layout.

    Args:
        config: of the whole model.
    """
    found = dict(weights)
    kind = config.get("vision_config", {}).get("model_type")
    if kind in _ENCODERS:
        found = {_older_name(name): array for name, array in found.items()}
    if config["model_type"] == "qwen3_vl_moe":
        hidden = int(config["text_config"]["hidden_size"])
        wide = 2 * int(config["text_config"]["moe_intermediate_size"])
        found = {n: _older_experts(n, array, hidden, wide) for n, array in found.items()}
    if config["model_type"] == "qwen3_5_moe":
        found = _stacked_experts(found)
    return found


def _stacked_experts(weights: Weights) -> Weights:
    """Those of one layer as one tensor, which is how mlx's programs compute them."""
    found: Weights = {}
    experts: dict[str, dict[int, mx.array]] = {}
    for name, array in weights.items():
        part = _EXPERT.fullmatch(name)
        if part is None:
            found[name] = array
        else:
            experts.setdefault(f"{part[1]}.switch_mlp.{part[3]}", {})[int(part[2])] = array
    for name, arrays in experts.items():
        found[name] = mx.stack([arrays[number] for number in sorted(arrays)])
    return found


def _older_name(name: str) -> str:
    name = _INNER.sub(r"\1", name)
    name = _TEXT.sub("language_model.model.", name)
    name = f"language_model.{name}" if name.startswith("lm_head.") else name
    return _SHORT.sub("vision_tower.vision_model.", name)


def _older_experts(name: str, array: mx.array, hidden: int, wide: int) -> mx.array:
    """(experts, inputs, outputs), which transformers 5 saves as (experts, outputs, inputs)."""
    found = _EXPERTS.search(name)
    if found is None:
        return array
    shape = (hidden, wide) if found[1] == "gate_up_proj" else (wide // 2, hidden)
    return array if tuple(array.shape[1:]) == shape else array.swapaxes(1, 2)
