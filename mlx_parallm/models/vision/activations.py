"""The activations of towers and projectors, as checkpoints name them.

mlx-vlm has one for each place in its code, in some places another than transformers, with which
checkpoints were trained: qwen3_vl_moe's are exchanged, llava's SigLIP and internvl's differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mlx import nn
from mlx.utils import tree_unflatten

_APPROXIMATIONS = {"gelu": "none", "gelu_pytorch_tanh": "tanh", "quick_gelu": "fast"}
# What transformers takes where config.json says nothing.
_OF_TOWERS = {
    "clip_vision_model": "quick_gelu",
    "internvl_vision": "gelu",
    "qwen2_vl": "quick_gelu",
    "qwen3_vl": "gelu_pytorch_tanh",
    "qwen3_vl_moe": "gelu_pytorch_tanh",
    "siglip_vision_model": "gelu_pytorch_tanh",
}
_SILU = ("pixtral", "qwen2_5_vl")
_IN_BLOCK = re.compile(r"\.(blocks|layers?)\.\d+\.")


def set_activations(model: Any, config: Mapping[str, Any]) -> None:
    """Let an mlx-vlm model compute with the activations of its checkpoint.

    Args:
        config: of the whole model, as mlx-vlm reads it.

    Raises:
        ValueError: the tower's is none that mlx-vlm's code can compute.
    """
    vision = config["vision_config"]
    asked = vision.get("hidden_act")
    found = [path for path, module in model.named_modules() if isinstance(module, nn.GELU)]
    own = [path for path in found if not path.startswith("language_model.")]
    in_blocks = {path for path in own if _IN_BLOCK.search(path)}
    fixed = vision.get("model_type") in _SILU and asked != "silu"
    if asked and (fixed or (in_blocks and asked not in _APPROXIMATIONS)):
        raise ValueError(f"the tower's activation {asked} is not supported")
    tower = asked or _OF_TOWERS.get(vision.get("model_type"))
    between = config.get("projector_hidden_act", "gelu")
    if between not in _APPROXIMATIONS:
        raise ValueError(f"the projector's activation {between} is not supported")
    names = [(path, tower if path in in_blocks else between) for path in own]
    made = [(path, nn.GELU(_APPROXIMATIONS[name])) for path, name in names if name]
    model.update_modules(tree_unflatten(made))
