"""The same of families that came later."""

from __future__ import annotations

from tests.models.vision import specs
from tests.models.vision.specs import CLIP, HALVES, QWEN, TEXT, Config

SPECS: dict[str, Config] = dict(specs.SPECS)

_QWEN35_TEXT: Config = {
    **TEXT,
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 4,
    "full_attention_interval": 2,
    "head_dim": 16,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": {
        "type": "default",
        "mrope_section": [2, 1, 1],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
}
SPECS |= {
    "qwen3_5": {
        **QWEN,
        "text": _QWEN35_TEXT,
        "vision": {
            **SPECS["qwen3_vl"]["vision"],
            "model_type": "qwen3_5",
            "deepstack_visual_indexes": [],
        },
    },
    "qwen3_5_moe": {
        **QWEN,
        "text": {
            **_QWEN35_TEXT,
            "model_type": "qwen3_5_moe_text",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 24,
            "moe_intermediate_size": 24,
        },
        "vision": {
            **SPECS["qwen3_vl"]["vision"],
            "model_type": "qwen3_5_moe",
            "deepstack_visual_indexes": [],
        },
    },
}

_GEMMA4_PICTURES: Config = {"patch_size": 8, "max_soft_tokens": 6, "pooling_kernel_size": 2}
_GEMMA4: Config = {
    "special": [
        *("<|image|>", "<|image>", "<image|>", "<|video|>"),
        *("<|audio|>", "<|audio>", "<audio|>"),
    ],
    "named": {
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "image_token": "<|image|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "audio_token": "<|audio|>",
    },
    "image": "<|image|>",
    "tied": True,
    "ids": {"image_token_id": "<|image|>", "video_token_id": "<|video|>"},
    "text": {
        **TEXT,
        "model_type": "gemma4_text",
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "head_dim": 8,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "sliding_window": 24,
        "rope_parameters": {
            "full_attention": {
                "partial_rotary_factor": 0.25,
                "rope_theta": 1000000.0,
                "rope_type": "proportional",
            },
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "tie_word_embeddings": True,
        "use_bidirectional_attention": None,
        "use_double_wide_mlp": True,
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6,
    },
    "vision": {
        **CLIP,
        "model_type": "gemma4_vision",
        "num_key_value_heads": 2,
        "head_dim": 16,
        "default_output_length": 6,
        "position_embedding_size": 64,
        "pooling_kernel_size": 2,
    },
    "config": {"audio_config": None, "hidden_size": 32},
    "processor": {"image_processor_type": "Gemma4ImageProcessor", **_GEMMA4_PICTURES},
    "files": {"processor_config.json": {"image_processor": _GEMMA4_PICTURES}},
}
_GEMMA4_LARGER_TEXT: Config = {
    **_GEMMA4["text"],
    "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "use_double_wide_mlp": False,
    "use_bidirectional_attention": "vision",
    "sliding_window": 5,  # a picture has six tokens
}
SPECS |= {
    "gemma4": _GEMMA4,
    "gemma4:larger": {
        **_GEMMA4,
        "module": "gemma4",
        "text": _GEMMA4_LARGER_TEXT,
    },
    "gemma4_unified": {
        **_GEMMA4,
        "text": {**_GEMMA4_LARGER_TEXT, "model_type": "gemma4_unified_text"},
        "vision": {
            "model_type": "gemma4_unified_vision",
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "model_patch_size": 16,
            "mm_embed_dim": 32,
            "mm_posemb_size": 16,
            "output_proj_dims": 32,
        },
        "processor": {"image_processor_type": "Gemma4UnifiedImageProcessor", **_GEMMA4_PICTURES},
    },
}


SPECS |= {
    "kimi_vl": {
        "special": ["<|media_start|>", "<|media_content|>", "<|media_pad|>", "<|media_end|>"],
        "image": "<|media_start|>image<|media_content|><|media_pad|><|media_end|>",
        "ids": {"media_placeholder_token_id": "<|media_pad|>"},
        "text": {
            **TEXT,
            "model_type": "deepseek_v3",
            "num_hidden_layers": 3,
            "num_key_value_heads": 4,
            "kv_lora_rank": 16,
            "q_lora_rank": None,
            "qk_rope_head_dim": 8,
            "v_head_dim": 8,
            "qk_nope_head_dim": 8,
            "n_routed_experts": 4,
            "n_shared_experts": 1,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.5,
            "moe_intermediate_size": 16,
            "moe_layer_freq": 1,
            "first_k_dense_replace": 1,
        },
        "vision": {
            "model_type": "moonvit",
            "depth": 3,
            "embed_dim": 32,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 8,
            "spatial_patch_size": 8,
            "init_pos_emb_height": 8,
            "init_pos_emb_width": 8,
        },
        "processor": {},
    },
    "llava:pixtral": {**SPECS["pixtral"], "module": "pixtral", "twin": "pixtral"},
}


SPECS |= {
    "kimi_k25": {
        **SPECS["kimi_vl"],
        "processor": {
            "media_proc_cfg": {"patch_size": 8, "in_patch_limit": 32, "merge_kernel_size": 2}
        },
    },
    "llava_onevision": {
        "special": ["<image>", "<video>"],
        "image": "<image>",
        "ids": {"image_token_index": "<image>", "video_token_index": "<video>"},
        "text": {**TEXT, "model_type": "qwen2"},
        "vision": {**CLIP, "model_type": "siglip_vision_model"},
        "config": {
            "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32], [64, 64]],
            "vision_aspect_ratio": "anyres_max_9",
        },
        "processor": {
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "image_grid_pinpoints": [[32, 32], [32, 64], [64, 32], [64, 64]],
            "size": {"height": 32, "width": 32},
            **HALVES,
        },
        "files": {"processor_config.json": {"num_image_tokens": 16}},
    },
    "aya_vision": {
        "special": [
            "<image>",
            "<|START_OF_IMG|>",
            "<|END_OF_IMG|>",
            "<|IMG_PATCH|>",
            "<|IMG_LINE_BREAK|>",
        ],
        "image": "<image>",
        "ids": {"image_token_index": "<|IMG_PATCH|>"},
        "text": {
            **TEXT,
            "model_type": "cohere2",
            "num_hidden_layers": 4,
            "head_dim": 8,
            "layer_norm_eps": 1e-5,
            "logit_scale": 1.0,
            "sliding_window": 24,
            "sliding_window_pattern": 2,
            "tie_word_embeddings": True,
        },
        "vision": {**CLIP, "model_type": "siglip_vision_model"},
        "config": {"downsample_factor": 2, "alignment_intermediate_size": 48},
        "processor": {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": 32, "width": 32},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 4,
            **HALVES,
        },
        "files": {
            "processor_config.json": {"patch_size": 8, "img_size": 32, "downsample_factor": 2}
        },
    },
}


_GLM: Config = {
    "special": ["<|begin_of_image|>", "<|end_of_image|>", "<|image|>", "<|video|>"],
    "image": "<|begin_of_image|><|image|><|end_of_image|>",
    "ids": {
        "image_token_id": "<|image|>",
        "video_token_id": "<|video|>",
        "vision_start_token_id": "<|begin_of_image|>",
        "vision_end_token_id": "<|end_of_image|>",
    },
    "text": {
        **TEXT,
        "model_type": "glm4v_text",
        "hidden_size": 64,
        "attention_bias": True,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
    },
    "vision": {
        "model_type": "glm4v",
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": 64,
        "num_heads": 2,
        "patch_size": 14,
        "image_size": 56,
    },
    "processor": {
        "image_processor_type": "Glm4vImageProcessor",
        "size": {"shortest_edge": 28 * 28 * 2, "longest_edge": 64 * 64 * 2},
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **HALVES,
    },
}
SPECS |= {
    "glm4v": _GLM,
    "glm4v_moe": {
        **_GLM,
        "text": {
            **_GLM["text"],
            "model_type": "glm4v_moe_text",
            "head_dim": 16,
            "use_qk_norm": False,
            "moe_intermediate_size": 24,
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "n_routed_experts": 4,
            "routed_scaling_factor": 1.5,
            "num_experts_per_tok": 2,
            "first_k_dense_replace": 1,
        },
        "vision": {**_GLM["vision"], "model_type": "glm4v_moe"},
    },
}
