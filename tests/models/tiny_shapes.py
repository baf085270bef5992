"""Parts that the tiny configurations of many architectures share."""

from __future__ import annotations

from typing import Any

VOCAB = 128
WINDOW = 8

Config = dict[str, Any]

SHAPE: Config = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
MOE: Config = {
    "moe_intermediate_size": 24,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "moe_layer_freq": 1,
    "mlp_only_layers": [],
    "decoder_sparse_step": 1,
}
MLA: Config = {
    **MOE,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 12,
}
INDEXER: Config = {"index_head_dim": 8, "index_n_heads": 2, "index_topk": 6}
# State sizes of 32 are what the Metal kernels take.
MAMBA: Config = {
    "state_size": 32,
    "conv_kernel": 4,
    "use_bias": False,
    "use_conv_bias": True,
    "time_step_rank": 4,
    "layer_norm_epsilon": 1e-5,
}
GRANITE: Config = {
    "logits_scaling": 2.0,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.8,
}
DELTA: Config = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
GPT: Config = {
    "n_ctx": 512,
    "n_positions": 512,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 3,
    "n_inner": 64,
    "layer_norm_epsilon": 1e-5,
    "vocab_size": VOCAB,
}
YARN: Config = {
    "type": "yarn",
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 128,
    "beta_fast": 32,
    "beta_slow": 1,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
}
KDA: Config = {
    "linear_attn_config": {
        "kda_layers": [1, 3],
        "full_attn_layers": [2],
        "num_heads": 4,
        "head_dim": 32,
        "short_conv_kernel_size": 4,
    },
    "model_max_length": 512,
    "num_experts_per_token": 2,
    "num_expert_group": 2,
    "q_lora_rank": 24,
}
MUSE: Config = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "layer_rope_theta": [10000.0, 0.0, 10000.0],
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "sliding_window": WINDOW,
    "post_norm_eps": 1e-8,
    "final_logit_softcapping": 20.0,
    "output_multiplier": 1.0,
}
SLIDING = {"sliding_window": WINDOW}
ALTERNATING = ["sliding_attention", "full_attention", "sliding_attention"]


def shape(*parts: Config, **own: Any) -> Config:
    """A decoder's usual config.json, with parts of others and its own fields."""
    config = dict(SHAPE)
    for part in parts:
        config |= part
    return config | own
