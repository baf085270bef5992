"""Checkpoints of the original `mamba_ssm` package, such as state-spaces/mamba2-1.3b.

Their config.json has no model_type, but d_model, n_layer and ssm_cfg; their weights are
those of mlx-lm's mamba2 (and mamba) under nearly the same names, in safetensors or in a
pytorch_model.bin (see torch_file.py). Nothing is written:
config and names are translated while loading. Their folders usually have no tokenizer;
put the files of the one they were trained with beside the weights (EleutherAI/gpt-neox-20b
for those of state-spaces).

Defaults are those of mamba_ssm 2.2: MambaConfig, Mamba2 and Mamba.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx

from mlx_parallm.errors import ModelLoadError

FORMAT = "mamba_ssm"


def is_mamba_ssm(config: Mapping[str, Any]) -> bool:
    """Whether this config.json was written by mamba_ssm, or translated from such a one."""
    written = "model_type" not in config and {"d_model", "n_layer", "vocab_size"} <= set(config)
    return written or config.get("checkpoint_format") == FORMAT


def translate_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """mlx-lm's config of one of mamba_ssm's, whose own entries stay beside it.

    Raises:
        ModelLoadError: layers that mlx-lm's models do not have.
    """
    ssm = {**config, **(config.get("ssm_cfg") or {})}
    # The package's default is Mamba1; converted checkpoints write Mamba2's own entries.
    is_mamba2 = ssm.get("layer", "Mamba2" if "headdim" in ssm else "Mamba1") == "Mamba2"
    _check(config, ssm, is_mamba2)
    width = int(config["d_model"])
    inner = int(ssm.get("d_ssm") or ssm.get("expand", 2) * width)
    common = {
        "checkpoint_format": FORMAT,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": int(config["n_layer"]),
        "conv_kernel": int(ssm.get("d_conv", 4)),
        "use_bias": bool(ssm.get("bias", False)),
        "use_conv_bias": bool(ssm.get("conv_bias", True)),
        "time_step_rank": ssm.get("dt_rank", "auto"),
        "tie_word_embeddings": _is_tied(config),
    }
    if not is_mamba2:
        own: dict[str, Any] = {"model_type": "mamba", "state_size": int(ssm.get("d_state", 16))}
    else:
        head_dim = int(ssm.get("headdim", 64))
        own = {
            "model_type": "mamba2",
            "state_size": int(ssm.get("d_state", 128)),
            "head_dim": head_dim,
            "num_heads": inner // head_dim,
            "n_groups": int(ssm.get("ngroups", 1)),
            "layer_norm_epsilon": float(config.get("norm_epsilon", 1e-5)),
            "time_step_limit": tuple(ssm.get("dt_limit", (0.0, float("inf")))),
        }
    return {**config, **common, **own}


def padded_vocab_size(config: Mapping[str, Any]) -> int:
    """Rows of the embedding: the vocabulary, padded."""
    size, multiple = int(config["vocab_size"]), int(config.get("pad_vocab_size_multiple", 8))
    return -(-size // multiple) * multiple


def rename_weights(
    weights: Mapping[str, mx.array], config: Mapping[str, Any]
) -> dict[str, mx.array]:
    """mlx-lm's names; the copy of a tied embedding is left out."""
    renamed = {
        name.replace("backbone.embedding.", "backbone.embeddings."): array
        for name, array in weights.items()
    }
    if _is_tied(config):
        renamed.pop("lm_head.weight", None)
    return renamed


def _is_tied(config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_embeddings", config.get("tie_word_embeddings", True)))


def _check(config: Mapping[str, Any], ssm: Mapping[str, Any], is_mamba2: bool) -> None:
    reasons = {
        "attn_layer_idx (attention layers)": bool(config.get("attn_layer_idx")),
        "d_intermediate (MLP layers)": bool(config.get("d_intermediate")),
        "rms_norm = false": config.get("rms_norm", True) is False,
        "D_has_hdim": is_mamba2 and bool(ssm.get("D_has_hdim")),
        "norm_before_gate": is_mamba2 and bool(ssm.get("norm_before_gate")),
        "rmsnorm = false": is_mamba2 and ssm.get("rmsnorm", True) is False,
        # An inner MLP beside the state space, which mlx-lm's block does not have.
        "d_ssm": is_mamba2
        and ssm.get("d_ssm") not in (None, ssm.get("expand", 2) * config["d_model"]),
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise ModelLoadError(f"this mamba_ssm checkpoint has {found[0]}, which is not supported")
