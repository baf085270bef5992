"""A random adapter in PEFT's format, for a model whose attention has a q_proj."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

_RANK = 4


def make_adapter(model: Path, folder: Path) -> bool:
    """Write one for a model's folder; False where the model says too little about itself."""
    path = model / "config.json"
    config = json.loads(path.read_text()) if path.exists() else {}
    try:
        width, layers = config["hidden_size"], config["num_hidden_layers"]
        heads = config["num_attention_heads"]
    except KeyError:
        return False
    out = heads * config.get("head_dim", width // heads)
    rng, weights = np.random.default_rng(0), {}
    for layer in range(layers):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        weights[f"{name}.lora_A.weight"] = rng.normal(size=(_RANK, width)).astype(np.float32)
        weights[f"{name}.lora_B.weight"] = 0.1 * rng.normal(size=(out, _RANK)).astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": _RANK, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return True
