"""What tiny models that see are made of: tokens, configs and processors of the first families."""

from __future__ import annotations

from typing import Any

Config = dict[str, Any]

TEXT: Config = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}
HALVES: Config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
PARTS = (
    "{%- for m in messages %}{{- m['role'] + ': ' }}"
    "{%- if m['content'] is string %}{{- m['content'] }}"
    "{%- else %}{%- for part in m['content'] %}"
    "{%- if part['type'] == 'image' %}{{- 'IMAGE' }}"
    "{%- elif part['type'] == 'video' %}{{- 'VIDEO' }}{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}"
)
# As SmolVLM's: plain text is lost.
PARTS_ONLY = PARTS.replace("{%- if m['content'] is string %}{{- m['content'] }}{%- else %}", "")
PARTS_ONLY = PARTS_ONLY.replace("{%- endfor %}{%- endif %}{{- '\n'", "{%- endfor %}{{- '\n'")

QWEN: Config = {
    "special": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "image": "<|vision_start|><|image_pad|><|vision_end|>",
    "video": "<|vision_start|><|video_pad|><|vision_end|>",
    "ids": {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
    "processor": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "min_pixels": 28 * 28,
        "max_pixels": 64 * 64,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        **HALVES,
    },
    # Of all frames together: each of them has 2 x 3 features.
    "files": {
        "video_preprocessor_config.json": {
            "min_pixels": 28 * 28,
            "max_pixels": 6 * 56 * 84,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **HALVES,
        }
    },
}
_QWEN2_TEXT: Config = {**TEXT, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
_IDEFICS: Config = {
    "special": [
        "<fake_token_around_image>",
        "<image>",
        "<end_of_utterance>",
        "<global-img>",
        *_ROWS,
    ],
    "image": "<image>",
    "ids": {"image_token_id": "<image>"},
    "template": PARTS_ONLY,
    "text": {**TEXT, "model_type": "llama"},
    "vision": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "patch_size": 8,
        "image_size": 32,
    },
    "config": {"scale_factor": 2},
    "processor": {
        "do_image_splitting": True,
        "size": {"longest_edge": 64},
        "max_image_size": {"longest_edge": 32},
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_pad": True,
        "do_convert_rgb": True,
        **HALVES,
    },
    "files": {"processor_config.json": {"image_seq_len": 4}},
}

SPECS: dict[str, Config] = {
    "idefics3": {
        **_IDEFICS,
        "vision": {**_IDEFICS["vision"], "model_type": "idefics3_vision"},
        "processor": {**_IDEFICS["processor"], "image_processor_type": "Idefics3ImageProcessor"},
    },
    "smolvlm": {
        **_IDEFICS,
        "vision": {**_IDEFICS["vision"], "model_type": "smolvlm_vision"},
        "processor": {**_IDEFICS["processor"], "image_processor_type": "SmolVLMImageProcessor"},
    },
    "qwen2_vl": {
        **QWEN,
        "flat_text": True,
        "text": _QWEN2_TEXT,
        "vision": {
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_patch_size": 14,
        },
    },
    "qwen2_5_vl": {
        **QWEN,
        "flat_text": True,
        "text": _QWEN2_TEXT,
        "vision": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "num_heads": 2,
            "patch_size": 14,
            "spatial_patch_size": 14,
            "window_size": 28,
            "tokens_per_second": 1,
            "fullatt_block_indexes": [1],
        },
    },
    "qwen3_vl": {
        **QWEN,
        "text": {
            **TEXT,
            "model_type": "qwen3_vl_text",
            "head_dim": 8,
            "rope_scaling": {
                "type": "default",
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
            },
        },
        "vision": {
            "model_type": "qwen3_vl",
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "out_hidden_size": 32,
            "num_heads": 2,
            "patch_size": 14,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0, 1],
        },
    },
}

CLIP: Config = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
}
_PIXTRAL: Config = {
    "special": ["[IMG]", "[IMG_BREAK]", "[IMG_END]"],
    "image": "[IMG]",
    "ids": {"image_token_index": "[IMG]"},
    "vision": {**CLIP, "model_type": "pixtral", "head_dim": 16, "image_size": 64},
    "processor": {
        "image_processor_type": "PixtralImageProcessor",
        "patch_size": {"height": 8, "width": 8},
        "size": {"longest_edge": 48},
        **HALVES,
    },
}
SPECS |= {
    "gemma3": {
        "special": ["<start_of_image>", "<end_of_image>", "<image_soft_token>"],
        "named": {
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
        "image": "<start_of_image>",
        "tied": True,
        "ids": {"image_token_index": "<image_soft_token>"},
        "text": {
            **TEXT,
            "model_type": "gemma3_text",
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 64,
            "sliding_window_pattern": 2,
            "rope_global_base_freq": 10000.0,
            "rope_local_base_freq": 10000.0,
            "mm_tokens_per_image": 4,
        },
        "vision": {**CLIP, "model_type": "siglip_vision_model"},
        "config": {"hidden_size": 32, "mm_tokens_per_image": 4, "pad_token_id": 0},
        "processor": {
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": 32, "width": 32},
            **HALVES,
        },
        "files": {"processor_config.json": {"image_seq_length": 4}},
    },
    "internvl": {
        "special": ["<img>", "</img>", "<IMG_CONTEXT>", "<video>"],
        "named": {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        "image": "<IMG_CONTEXT>",
        "ids": {"image_token_id": "<IMG_CONTEXT>"},
        "text": {**TEXT, "model_type": "qwen3", "head_dim": 8},
        "vision": {**CLIP, "model_type": "internvl_vision"},
        "config": {"max_dynamic_patch": 2},
        "processor": {},
        "files": {"processor_config.json": {"image_seq_length": 4}},
    },
    "lfm2_vl": {
        "special": ["<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"],
        "image": "<image>",
        "ids": {"image_token_id": "<image>"},
        "text": {
            **TEXT,
            "model_type": "lfm2",
            "num_hidden_layers": 3,
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": 3,
            "block_dim": 32,
            "block_ff_dim": 48,
            "block_multiple_of": 16,
            "block_ffn_dim_multiplier": 1.0,
            "block_auto_adjust_ff_dim": False,
            "layer_types": ["conv", "full_attention", "conv"],
            "full_attn_idxs": [1],
            "tie_word_embeddings": True,
        },
        "vision": {**CLIP, "model_type": "siglip2_vision_model", "num_patches": 16},
        "config": {"encoder_patch_size": 8, "projector_hidden_size": 48},
        "processor": {
            "encoder_patch_size": 8,
            "min_image_tokens": 2,
            "max_image_tokens": 8,
            "tile_size": 32,
            **HALVES,
        },
    },
    "llava": {
        "special": ["<image>"],
        "image": "<image>",
        "ids": {"image_token_index": "<image>"},
        "text": {**TEXT, "model_type": "llama"},
        "vision": {**CLIP, "model_type": "clip_vision_model"},
        "config": {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
        "processor": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
            **HALVES,
        },
        "files": {
            "processor_config.json": {
                "patch_size": 8,
                "vision_feature_select_strategy": "default",
                "num_additional_image_tokens": 1,
            }
        },
    },
    "mistral3": {
        **_PIXTRAL,
        "text": {**TEXT, "model_type": "mistral", "head_dim": 8},
        "config": {"spatial_merge_size": 2, "vision_feature_layer": -1},
        "files": {"processor_config.json": {"patch_size": 8, "spatial_merge_size": 2}},
    },
    "pixtral": {
        **_PIXTRAL,
        "text": {**TEXT, "model_type": "llama", "head_dim": 8},
        "files": {"processor_config.json": {"patch_size": 8}},
    },
    "qwen3_vl_moe": {
        **SPECS["qwen3_vl"],
        "text": {
            **SPECS["qwen3_vl"]["text"],
            "model_type": "qwen3_vl_moe_text",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 24,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "norm_topk_prob": True,
        },
        "vision": {**SPECS["qwen3_vl"]["vision"], "model_type": "qwen3_vl_moe"},
    },
}
