"""Decoders with a choice of experts."""

from __future__ import annotations

import numpy as np

from mlx_parallm.models.gguf.architecture import Architecture, Config, rotary_pairs
from mlx_parallm.models.gguf.names import ATTENTION, EXPERTS, LLAMA, QK_NORM, SHARED_EXPERT
from mlx_parallm.models.gguf.reader import GgufFile

_MIXTRAL = {part: f"block_sparse_moe.{name.removeprefix('mlp.')}" for part, name in EXPERTS.items()}
_GPT_OSS = ATTENTION | {
    "attn_sinks.weight": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}


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
}
# A file of Mixtral says that it is a Llama with experts.
MIXTRAL = Architecture("mixtral", LLAMA | _MIXTRAL, _mixtral, rows=rotary_pairs)
