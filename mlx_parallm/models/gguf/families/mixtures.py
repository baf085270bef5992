"""Decoders with a choice of experts."""

from __future__ import annotations

import numpy as np

from mlx_parallm.models.gguf.architecture import Architecture, Config, rotary_pairs
from mlx_parallm.models.gguf.families.dense import biases, granite_scales, partial_rotary
from mlx_parallm.models.gguf.names import ATTENTION, EXPERTS, LLAMA, MLP, QK_NORM, SHARED_EXPERT
from mlx_parallm.models.gguf.reader import GgufFile

_MIXTRAL = {part: f"block_sparse_moe.{name.removeprefix('mlp.')}" for part, name in EXPERTS.items()}
_IN_EXPERTS = {part: name.replace("switch_mlp", "experts") for part, name in EXPERTS.items()}
_GPT_OSS = (
    ATTENTION
    | {
        "attn_sinks.weight": "self_attn.sinks",
        "post_attention_norm": "post_attention_layernorm",
    }
    | _IN_EXPERTS
    | {"ffn_gate_inp": "mlp.router"}
)

_SHARED = {f"{part}_shexp": f"mlp.shared_experts.{name[4:]}" for part, name in MLP.items()}
_CHOICE = {"exp_probs_b.bias": "mlp.gate.e_score_correction_bias"}
_GLM4_MOE = (
    ATTENTION
    | QK_NORM
    | MLP
    | EXPERTS
    | _SHARED
    | _CHOICE
    | {"post_attention_norm": "post_attention_layernorm"}
)
_DOTS1 = LLAMA | QK_NORM | _SHARED | _CHOICE | _IN_EXPERTS
_GRANITE_MOE = LLAMA | _MIXTRAL | {"ffn_gate_inp": "block_sparse_moe.router.layer"}


def _qwen3_moe(file: GgufFile, prefix: str) -> Config:
    return {
        "num_experts": file.need(f"{prefix}.expert_count"),
        "num_experts_per_tok": file.need(f"{prefix}.expert_used_count"),
        "moe_intermediate_size": file.need(f"{prefix}.expert_feed_forward_length"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }


def _qwen2_moe(file: GgufFile, prefix: str) -> Config:
    return _qwen3_moe(file, prefix) | {
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": file.need(f"{prefix}.expert_shared_feed_forward_length"),
    }


def shared_gate_row(part: str, values: np.ndarray, config: Config) -> np.ndarray:
    """The gate of an expert for all tokens, stored as a vector."""
    return values.reshape(1, -1) if part == "ffn_gate_inp_shexp.weight" else values


def _sigmoid_moe(file: GgufFile, prefix: str) -> Config:
    """Experts chosen by a sigmoid and a bias, as DeepSeek 3 began it, after some plain layers."""
    return {
        "n_routed_experts": file.need(f"{prefix}.expert_count"),
        "n_shared_experts": file.get(f"{prefix}.expert_shared_count", 0) or None,
        "num_experts_per_tok": file.need(f"{prefix}.expert_used_count"),
        "moe_intermediate_size": file.need(f"{prefix}.expert_feed_forward_length"),
        "first_k_dense_replace": file.get(f"{prefix}.leading_dense_block_count", 0),
        "routed_scaling_factor": file.get(f"{prefix}.expert_weights_scale", 1.0),
        "norm_topk_prob": bool(file.get(f"{prefix}.expert_weights_norm", False)),
        "n_group": file.get(f"{prefix}.expert_group_count", 1),
        "topk_group": file.get(f"{prefix}.expert_group_used_count", 1),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in file.names,
    }


def _glm4_moe(file: GgufFile, prefix: str) -> Config:
    return _sigmoid_moe(file, prefix) | biases(file, prefix) | partial_rotary(file, prefix)


def _olmoe(file: GgufFile, prefix: str) -> Config:
    return _qwen3_moe(file, prefix) | {"norm_topk_prob": False}


def _granite_moe(file: GgufFile, prefix: str) -> Config:
    return _mixtral(file, prefix) | granite_scales(file, prefix) | biases(file, prefix)


def _mixtral(file: GgufFile, prefix: str) -> Config:
    return {
        "num_local_experts": file.need(f"{prefix}.expert_count"),
        "num_experts_per_tok": file.need(f"{prefix}.expert_used_count"),
    }


def _gpt_oss(file: GgufFile, prefix: str) -> Config:
    return _mixtral(file, prefix) | {
        "intermediate_size": file.need(f"{prefix}.expert_feed_forward_length"),
        "sliding_window": file.need(f"{prefix}.attention.sliding_window"),
    }


MIXTURES = {
    "qwen2moe": Architecture(
        "qwen2_moe", LLAMA | EXPERTS | SHARED_EXPERT, _qwen2_moe, values=shared_gate_row
    ),
    "qwen3moe": Architecture("qwen3_moe", LLAMA | QK_NORM | EXPERTS, _qwen3_moe),
    "gpt-oss": Architecture("gpt_oss", _GPT_OSS, _gpt_oss),
    "glm4moe": Architecture("glm4_moe", _GLM4_MOE, _glm4_moe),
    "dots1": Architecture("dots1", _DOTS1, _sigmoid_moe),
    "olmoe": Architecture("olmoe", LLAMA | QK_NORM | EXPERTS, _olmoe),
    "granitemoe": Architecture("granitemoe", _GRANITE_MOE, _granite_moe, rows=rotary_pairs),
}
# A file of Mixtral says that it is a Llama with experts.
MIXTRAL = Architecture("mixtral", LLAMA | _MIXTRAL, _mixtral, rows=rotary_pairs)
