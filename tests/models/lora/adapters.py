"""Random adapters on disk, in mlx-lm's and PEFT's format, and their oracles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters

ALL = (
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


def mlx_lm_adapter(folder: Path, model: Any, seed: int, **settings: Any) -> Path:
    """A random adapter made by mlx-lm's own layers, saved as its trainer does.

    Args:
        model: gets the layers; give a fresh one.
        settings: rank, scale, keys, kind ("lora" or "dora").
    """
    kind = settings.pop("kind", "lora")
    parameters = {"rank": 4, "scale": 2.0, "dropout": 0.0} | settings
    config = {
        "fine_tune_type": kind,
        "num_layers": len(model.layers),
        "lora_parameters": parameters,
    }
    model.freeze()
    linear_to_lora_layers(model, len(model.layers), parameters, use_dora=kind == "dora")
    rng = np.random.default_rng(seed)

    def noise(path: str, value: mx.array) -> mx.array:
        scale = 0.3 if "lora" in path else 0.1
        drawn = mx.array(rng.normal(size=value.shape).astype(np.float32) * scale)
        return drawn if "lora" in path else value * (1 + drawn)

    trained = tree_map_with_path(noise, model.trainable_parameters())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "adapters.safetensors"), dict(tree_flatten(trained)))
    return folder


def with_mlx_lm(model: Any, folder: Path) -> Any:
    """mlx-lm's unfused model with an adapter: the oracle."""
    adapted = load_adapters(model, str(folder))
    adapted.eval()
    return adapted
