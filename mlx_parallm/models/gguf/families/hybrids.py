"""Decoders in which most layers keep a state instead of K and V."""

from __future__ import annotations

from typing import Any

import numpy as np

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.architecture import Architecture, Config, each_layer, rotary_pairs
from mlx_parallm.models.gguf.blocks import GROUP
from mlx_parallm.models.gguf.families.dense import granite_scales
from mlx_parallm.models.gguf.names import (
    ATTENTION,
    EXPERTS,
    LLAMA,
    MLP,
    QK_NORM,
    SHARED_EXPERT,
    TOP,
)
from mlx_parallm.models.gguf.reader import GgufFile

_DELTA = {
    "attn_qkv": "linear_attn.in_proj_qkv",
    "attn_gate": "linear_attn.in_proj_z",
    "ssm_beta": "linear_attn.in_proj_b",
    "ssm_alpha": "linear_attn.in_proj_a",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_conv1d": "linear_attn.conv1d",
    "ssm_norm": "linear_attn.norm",
    "ssm_out": "linear_attn.out_proj",
}
_QWEN35_LAYER = ATTENTION | QK_NORM | _DELTA | {"post_attention_norm": "post_attention_layernorm"}
_QWEN35_EXPERTS = EXPERTS | SHARED_EXPERT
_BOTH_EXPERTS = {"ffn_gate_up_exps": ("mlp.switch_mlp.gate_proj", "mlp.switch_mlp.up_proj")}
_INNER = "language_model."
_QWEN35_TOP = {part: f"{_INNER}{name}" for part, name in TOP.items()}
_LFM2_LAYER = ATTENTION | {
    "attn_norm": "operator_norm",
    "attn_output": "self_attn.out_proj",
    "attn_q_norm": "self_attn.q_layernorm",
    "attn_k_norm": "self_attn.k_layernorm",
    "shortconv.conv": "conv.conv",
    "shortconv.in_proj": "conv.in_proj",
    "shortconv.out_proj": "conv.out_proj",
    "ffn_norm": "ffn_norm",
}
_LFM2 = _LFM2_LAYER | {
    "ffn_gate": "feed_forward.w1",
    "ffn_up": "feed_forward.w3",
    "ffn_down": "feed_forward.w2",
}
_LFM2_MOE = _LFM2_LAYER | {
    part: f"feed_forward.{name.removeprefix('mlp.')}" for part, name in (MLP | EXPERTS).items()
}
_LFM2_MOE["exp_probs_b.bias"] = "feed_forward.expert_bias"
_LFM2_TOP = {"token_embd": "model.embed_tokens", "token_embd_norm": "model.embedding_norm"}
_GRANITE = LLAMA | {
    "ssm_in": "mamba.in_proj",
    "ssm_conv1d": "mamba.conv1d",
    "ssm_dt.bias": "mamba.dt_bias",
    "ssm_a": "mamba.A_log",
    "ssm_d": "mamba.D",
    "ssm_norm": "mamba.norm",
    "ssm_out": "mamba.out_proj",
}


def _state_values(part: str, values: np.ndarray, config: Config) -> np.ndarray:
    """Decays as logarithms, convolutions with their axis of one, and vectors as such."""
    if part == "ssm_a":
        return np.asarray(np.log(-values)).reshape(-1)
    if part in ("ssm_d", "ssm_norm.weight"):
        return values.reshape(-1)
    if part in ("ssm_conv1d.weight", "shortconv.conv.weight"):
        return values[..., None]
    return values.reshape(1, -1) if part == "ffn_gate_inp_shexp.weight" else values


def _delta(file: GgufFile, prefix: str) -> Config:
    heads = int(file.need(f"{prefix}.ssm.time_step_rank"))
    if file.get(f"{prefix}.rope.scaling.type", "none") != "none":
        raise ModelLoadError(f"{file.path}: rotary positions of this kind are not supported")
    return {
        "linear_num_value_heads": heads,
        "linear_num_key_heads": file.need(f"{prefix}.ssm.group_count"),
        "linear_key_head_dim": file.need(f"{prefix}.ssm.state_size"),
        "linear_value_head_dim": int(file.need(f"{prefix}.ssm.inner_size")) // heads,
        "linear_conv_kernel_dim": file.need(f"{prefix}.ssm.conv_kernel"),
        "full_attention_interval": file.get(f"{prefix}.full_attention_interval", 4),
        "rope_parameters": {
            "type": "default",
            "rope_theta": file.get(f"{prefix}.rope.freq_base", 10_000.0),
            "partial_rotary_factor": file.need(f"{prefix}.rope.dimension_count")
            / file.need(f"{prefix}.attention.key_length"),
        },
    }


def _delta_experts(file: GgufFile, prefix: str) -> Config:
    return _delta(file, prefix) | {
        "num_experts": file.need(f"{prefix}.expert_count"),
        "num_experts_per_tok": file.need(f"{prefix}.expert_used_count"),
        "moe_intermediate_size": file.need(f"{prefix}.expert_feed_forward_length"),
        "shared_expert_intermediate_size": file.need(f"{prefix}.expert_shared_feed_forward_length"),
        "norm_topk_prob": True,
    }


def _by_key_head(part: str, rows: np.ndarray, config: Config) -> np.ndarray:
    """Heads of V next to the head of K that they share; llama.cpp has each K's first one first."""
    size, begin = {
        "attn_qkv.weight": (config["linear_value_head_dim"], _rows_of_q_and_k(config)),
        "ssm_conv1d.weight": (config["linear_value_head_dim"], _rows_of_q_and_k(config)),
        "attn_gate.weight": (config["linear_value_head_dim"], 0),
        **dict.fromkeys(("ssm_beta.weight", "ssm_alpha.weight", "ssm_a", "ssm_dt.bias"), (1, 0)),
    }.get(part, (0, 0))
    if not size:
        return rows
    order = _heads_order(config, size)
    return np.concatenate([rows[:begin], rows[begin:][order]])


def _rows_of_q_and_k(config: Config) -> int:
    return int(2 * config["linear_num_key_heads"] * config["linear_key_head_dim"])


def _heads_order(config: Config, size: int) -> np.ndarray:
    keys, values = config["linear_num_key_heads"], config["linear_num_value_heads"]
    found = np.arange(values * size).reshape(values // keys, keys, size)
    return np.asarray(found.swapaxes(0, 1)).reshape(-1)


def _columns_by_key_head(part: str, config: Config) -> np.ndarray | None:
    if part != "ssm_out.weight":
        return None
    size = int(config["linear_value_head_dim"])
    if size % GROUP:
        raise ModelLoadError(f"heads of {size} values in layers of linear attention")
    return _heads_order(config, size // GROUP)


def _b_before_a(part: str, rows: np.ndarray, config: Config) -> np.ndarray:
    """All heads' rows of b, then of a; the file has both for each head of K."""
    if part != "ssm_ba.weight":
        return rows
    keys = config["linear_num_key_heads"]
    return np.asarray(rows.reshape(keys, 2, -1, *rows.shape[1:]).swapaxes(0, 1)).reshape(rows.shape)


def _lfm2(file: GgufFile, prefix: str) -> Config:
    count = int(file.need(f"{prefix}.block_count"))
    kinds = each_layer(file, f"{prefix}.attention.head_count_kv", count)
    return {
        "layer_types": ["full_attention" if heads else "conv" for heads in kinds],
        "norm_eps": file.need(f"{prefix}.attention.layer_norm_rms_epsilon"),
        "conv_bias": False,
        "conv_L_cache": file.need(f"{prefix}.shortconv.l_cache"),
        "block_dim": file.need(f"{prefix}.embedding_length"),
        "block_multiple_of": 1,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
    }


def _lfm2_moe(file: GgufFile, prefix: str) -> Config:
    return _lfm2(file, prefix) | {
        "num_experts": file.need(f"{prefix}.expert_count"),
        "num_experts_per_tok": file.need(f"{prefix}.expert_used_count"),
        "moe_intermediate_size": file.need(f"{prefix}.expert_feed_forward_length"),
        "num_dense_layers": file.get(f"{prefix}.leading_dense_block_count", 0),
        "norm_topk_prob": True,
        "use_expert_bias": True,
    }


def _granite_hybrid(file: GgufFile, prefix: str) -> Config:
    count = int(file.need(f"{prefix}.block_count"))
    kinds = each_layer(file, f"{prefix}.attention.head_count_kv", count)
    heads = int(file.need(f"{prefix}.ssm.time_step_rank"))
    turned = file.get(f"{prefix}.rope.scaling.finetuned", True)
    names = file.names
    return granite_scales(file, prefix) | {
        "layer_types": ["attention" if kv else "mamba" for kv in kinds],
        "position_embedding_type": "rope" if turned else "nope",
        "attention_bias": any(name.endswith("attn_q.bias") for name in names),
        "mamba_n_heads": heads,
        "mamba_d_head": int(file.need(f"{prefix}.ssm.inner_size")) // heads,
        "mamba_d_state": file.need(f"{prefix}.ssm.state_size"),
        "mamba_d_conv": file.need(f"{prefix}.ssm.conv_kernel"),
        "mamba_n_groups": file.need(f"{prefix}.ssm.group_count"),
        "mamba_conv_bias": any(name.endswith("ssm_conv1d.bias") for name in names),
        "mamba_proj_bias": False,
        "time_step_limit": [0.0, 1e9],  # there is none
    }


_QWEN: dict[str, Any] = {
    "values": _state_values,
    "top": _QWEN35_TOP,
    "body": f"{_INNER}model",
    "rotary": False,
    "divided": _BOTH_EXPERTS,
}
HYBRIDS = {
    "qwen35": Architecture(
        "qwen3_5",
        _QWEN35_LAYER | MLP,
        _delta,
        rows=_by_key_head,
        columns=_columns_by_key_head,
        **_QWEN,
    ),
    "qwen35moe": Architecture(
        "qwen3_5_moe",
        _QWEN35_LAYER | _QWEN35_EXPERTS,
        _delta_experts,
        rows=_by_key_head,
        columns=_columns_by_key_head,
        **_QWEN,
    ),
    # The same layers as in the architecture after it.
    "qwen3next": Architecture(
        "qwen3_5_moe",
        _QWEN35_LAYER | _QWEN35_EXPERTS,
        _delta_experts,
        rows=_b_before_a,
        **_QWEN
        | {
            "divided": _BOTH_EXPERTS
            | {"ssm_ba": ("linear_attn.in_proj_b", "linear_attn.in_proj_a")}
        },
    ),
    "lfm2": Architecture("lfm2", _LFM2, _lfm2, values=_state_values, top=_LFM2_TOP),
    "lfm2moe": Architecture("lfm2_moe", _LFM2_MOE, _lfm2_moe, values=_state_values, top=_LFM2_TOP),
    "granitehybrid": Architecture(
        "granitemoehybrid",
        _GRANITE,
        _granite_hybrid,
        rows=rotary_pairs,
        values=_state_values,
    ),
}
