"""Tiny configurations: sliding windows, recurrent states, language parts of multimodal models."""

from __future__ import annotations

from tests.models.tiny_shapes import (
    ALTERNATING,
    DELTA,
    GRANITE,
    KDA,
    MAMBA,
    MLA,
    MOE,
    MUSE,
    SLIDING,
    VOCAB,
    WINDOW,
    Config,
    shape,
)

_GEMMA4 = shape(
    SLIDING,
    num_hidden_layers=6,
    sliding_window_pattern=3,
    num_kv_shared_layers=3,
    global_head_dim=16,
    vocab_size_per_layer_input=VOCAB,
    hidden_size_per_layer_input=8,
    tie_word_embeddings=True,
)

_MINISTRAL3 = shape(
    SLIDING,
    layer_types=ALTERNATING,
    rope_parameters={
        "rope_theta": 10000.0,
        "rope_type": "default",
        "llama_4_scaling_beta": 0.1,
        "original_max_position_embeddings": 8,
    },
)

_LFM2 = shape(
    norm_eps=1e-5,
    conv_bias=False,
    conv_L_cache=3,
    block_dim=32,
    block_ff_dim=48,
    block_multiple_of=8,
    block_ffn_dim_multiplier=1.0,
    block_auto_adjust_ff_dim=False,
    full_attn_idxs=[1],
)

MIXED: dict[str, Config] = {
    # Sliding windows.
    "gpt_oss": shape(MOE, SLIDING, layer_types=ALTERNATING),
    "gemma3_text": shape(
        SLIDING, sliding_window_pattern=3, query_pre_attn_scalar=8.0, rope_local_base_freq=1000.0
    ),
    "cohere2": shape(SLIDING, sliding_window_pattern=3, layer_norm_eps=1e-5, logit_scale=0.5),
    "exaone4": shape(
        SLIDING,
        sliding_window_pattern="LLG",
        rope_scaling={"rope_type": "default"},
    ),
    "exaone_moe": shape(MOE, SLIDING, layer_types=ALTERNATING, is_moe_layer=[False, True, True]),
    "olmo3": shape(SLIDING, layer_types=ALTERNATING),
    "ministral3": _MINISTRAL3,
    "afmoe": shape(MOE, SLIDING, layer_types=ALTERNATING, num_dense_layers=1),
    "mellum": shape(
        MOE,
        SLIDING,
        layer_types=ALTERNATING,
        rope_parameters={
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            "full_attention": {"rope_theta": 50000.0, "rope_type": "default"},
        },
    ),
    "mimo_v2_flash": shape(
        MOE,
        hybrid_layer_pattern=[1, 0, 1],
        moe_layer_freq=[0, 1, 1],
        add_swa_attention_sink_bias=True,
        add_full_attention_sink_bias=False,
        sliding_window_size=WINDOW,
        topk_method="noaux_tc",
        scoring_func="sigmoid",
        layernorm_epsilon=1e-5,
        swa_rope_theta=1000.0,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=4,
        v_head_dim=6,
        swa_head_dim=8,
        swa_v_head_dim=6,
        partial_rotary_factor=0.5,
    ),
    "muse_glimmer": shape(MUSE),
    "plamo3": shape(SLIDING, window_size=WINDOW, sliding_window_pattern=3),
    "spark2_5": shape(
        SLIDING,
        layer_types=ALTERNATING,
        rope_parameters={
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            "full_attention": {"rope_theta": 50000.0, "rope_type": "default"},
        },
    ),
    "step3p5": shape(
        SLIDING,
        layer_types=ALTERNATING,
        num_attention_groups=2,
        moe_num_experts=4,
        moe_top_k=2,
        moe_intermediate_size=24,
        share_expert_dim=24,
        moe_layers_enum="1,2",
    ),
    "laguna": shape(MOE, SLIDING, layer_types=ALTERNATING),
    "iquestloopcoder": shape(loop_num=2, loop_window_size=WINDOW),
    "gemma3n": {
        "text_config": shape(
            SLIDING,
            model_type="gemma3n_text",
            num_hidden_layers=6,
            layer_types=["sliding_attention", "full_attention"] * 3,
            num_kv_shared_layers=2,
            vocab_size_per_layer_input=VOCAB,
            hidden_size_per_layer_input=8,
            rope_local_base_freq=1000.0,
            final_logit_softcapping=30.0,
            activation_sparsity_pattern=[0.8, 0.0, 0.8, 0.0, 0.0, 0.0],
            altup_num_inputs=2,
            altup_coef_clip=2.0,
            altup_correct_scale=True,
            altup_active_idx=0,
            laurel_rank=8,
        )
    },
    "gemma4_text": _GEMMA4,
    "gemma4_text:experts": _GEMMA4
    | {
        "model_type": "gemma4_text",
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 24,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
    },
    # Recurrent states, alone and beside attention.
    "mamba": shape(MAMBA),
    "mamba2": shape(
        MAMBA, num_heads=8, head_dim=8, n_groups=2, time_step_limit=[0.0, float("inf")]
    ),
    "jamba": shape(
        MOE,
        num_hidden_layers=4,
        attn_layer_offset=1,
        attn_layer_period=2,
        expert_layer_offset=1,
        expert_layer_period=2,
        mamba_d_conv=4,
        mamba_d_state=32,
        mamba_expand=2,
    ),
    "nemotron_h": shape(
        MOE,
        MAMBA,
        hybrid_override_pattern=["M", "-", "*", "E", "M"],
        mamba_num_heads=8,
        mamba_head_dim=8,
        mamba_proj_bias=False,
        ssm_state_size=32,
        n_groups=2,
        moe_shared_expert_intermediate_size=24,
    ),
    "granitemoehybrid": shape(
        MOE,
        GRANITE,
        layer_types=["mamba", "attention", "mamba"],
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_proj_bias=False,
        mamba_d_state=32,
        mamba_d_conv=4,
        mamba_n_groups=2,
        mamba_conv_bias=True,
    ),
    "falcon_h1": shape(
        num_hidden_layers=2,
        mamba_d_head=8,
        mamba_d_ssm=64,
        mamba_d_state=32,
        mamba_n_heads=8,
        mamba_n_groups=2,
        mamba_rms_norm=True,
    ),
    "plamo2": shape(
        num_hidden_layers=4,
        hidden_size_per_head=8,
        attention_window_size=WINDOW,
        mamba_num_heads=4,
        mamba_d_state=32,
        mamba_step=2,
    ),
    "lfm2": _LFM2,
    "lfm2_moe": shape(
        MOE,
        use_expert_bias=True,
        num_dense_layers=1,
        norm_eps=1e-5,
        conv_bias=False,
        conv_L_cache=3,
        full_attn_idxs=[1],
    ),
    "recurrent_gemma": shape(
        conv1d_width=4,
        logits_soft_cap=30.0,
        attention_window_size=WINDOW,
        block_types=["recurrent", "recurrent", "attention"],
    ),
    "rwkv7": shape(
        hidden_size=64,
        head_dim=32,
        norm_eps=1e-5,
        a_low_rank_dim=8,
        v_low_rank_dim=8,
        gate_low_rank_dim=8,
        decay_low_rank_dim=8,
    ),
    "qwen3_next": shape(
        MOE, DELTA, num_hidden_layers=4, full_attention_interval=2, partial_rotary_factor=0.5
    ),
    "olmo_hybrid": shape(
        DELTA,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_allow_neg_eigval=True,
    ),
    "baichuan_m1": shape(
        SLIDING,
        sliding_window_layers=[0, 2],
        conv_window=2,
        num_swa_attention_heads=4,
        num_swa_key_value_heads=2,
    ),
    "bailing_moe_linear": shape(
        MOE, num_hidden_layers=4, layer_group_size=2, group_norm_size=2, use_qk_norm=True
    ),
    "bailing_hybrid": shape(MLA, num_hidden_layers=4, layer_group_size=2, group_norm_size=2),
    "bailing_moe_v3": shape(
        MLA,
        model_type="bailing_hybrid",
        architectures=["BailingMoeV3ForCausalLM"],
        num_hidden_layers=4,
        layer_group_size=2,
    ),
    "kimi_linear": shape(MLA, KDA, head_dim=20),
    "kimi_k3": {
        "text_config": shape(
            MLA, KDA, attn_res_block_size=2, activation_situ_beta=1.0, hidden_act="situ"
        )
    },
    "gear": shape(
        SLIDING,
        num_hidden_layers=4,
        layer_types=["conv_mixer", "sliding_attention", "full_attention", "conv_mixer"],
        conv_L_cache=3,
        query_pre_attn_scalar=8.0,
    ),
    # The language part of multimodal models.
    "prism_hadamard_qwen35": {
        "text_config": shape(
            DELTA,
            model_type="qwen3_5",
            hidden_size=128,
            intermediate_size=512,
            full_attention_interval=3,
        ),
        "tensor_namespace": "mlx-vlm-qwen3_5",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [
            {
                "path": f"model.layers.1.mlp.{name}_proj",
                "block": block,
                "embedding": False,
                "dtype": "float16",
            }
            for name, block in (("gate", 0), ("up", 0), ("down", 512))
        ],
    },
    "qwen2_vl": {"text_config": shape(model_type="qwen2")},
    "qwen3_vl": {"text_config": shape(model_type="qwen3")},
    "qwen3_vl_moe": {"text_config": shape(MOE, model_type="qwen3_moe")},
    "qwen3_5": {"text_config": shape(DELTA, model_type="qwen3_5", full_attention_interval=3)},
    "qwen3_5_moe": {
        "text_config": shape(MOE, DELTA, model_type="qwen3_5_moe", full_attention_interval=3)
    },
    "gemma3": {
        "vocab_size": VOCAB,
        "text_config": shape(
            SLIDING,
            model_type="gemma3_text",
            sliding_window_pattern=3,
            query_pre_attn_scalar=8.0,
            rope_local_base_freq=1000.0,
        ),
    },
    "gemma4": {"vocab_size": VOCAB, "text_config": _GEMMA4},
    "mistral3": {"text_config": _MINISTRAL3 | {"model_type": "ministral3"}},
    "pixtral": {"text_config": shape(model_type="mistral")},
    "lfm2-vl": {"text_config": _LFM2 | {"model_type": "lfm2"}},
    "kimi_vl": {"text_config": shape(MLA)},
    "kimi_k25": {"text_config": shape(MLA)},
    "llama4": {
        "text_config": shape(
            num_hidden_layers=4,
            attention_chunk_size=WINDOW,
            interleave_moe_layer_step=2,
            intermediate_size_mlp=48,
            num_local_experts=4,
            num_experts_per_tok=1,
            rope_scaling=None,
            use_qk_norm=True,
            model_type="llama4_text",
            attn_temperature_tuning=4,
            floor_scale=8,
        )
    },
    "llama4_text": shape(no_rope_layers=[1, 0, 1], intermediate_size_mlp=48, use_qk_norm=True),
    "minimax_m3_vl": {
        "text_config": shape(
            MOE,
            dense_intermediate_size=48,
            moe_layer_freq=[0, 1, 1],
            sparse_attention_freq=[0, 1, 1],
            index_n_heads=2,
            index_head_dim=8,
            index_block_size=4,
            index_topk_blocks=3,
        )
    },
    "muse_spark": {
        "text_config": shape(
            MUSE,
            num_local_experts=4,
            num_experts_per_tok=2,
            moe_hidden_size=24,
            moe_intermediate_size=24,
        )
    },
}
