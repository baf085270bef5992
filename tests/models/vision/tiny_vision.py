"""Tiny models that see, one of each family: random weights, processor, tokenizer, no network."""

from __future__ import annotations

import importlib
import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_map
from transformers import AutoTokenizer

from mlx_parallm.models.loader import BUNDLED, resolve
from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.models.vision.video import Video

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
_HALVES: Config = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
_PARTS = (
    "{%- for m in messages %}{{- m['role'] + ': ' }}"
    "{%- if m['content'] is string %}{{- m['content'] }}"
    "{%- else %}{%- for part in m['content'] %}"
    "{%- if part['type'] == 'image' %}{{- 'IMAGE' }}"
    "{%- elif part['type'] == 'video' %}{{- 'VIDEO' }}{%- else %}{{- part['text'] }}{%- endif %}"
    "{%- endfor %}{%- endif %}{{- '\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'assistant:' }}{%- endif %}"
)
# As SmolVLM's: plain text is lost.
_PARTS_ONLY = _PARTS.replace("{%- if m['content'] is string %}{{- m['content'] }}{%- else %}", "")
_PARTS_ONLY = _PARTS_ONLY.replace("{%- endfor %}{%- endif %}{{- '\n'", "{%- endfor %}{{- '\n'")

_QWEN: Config = {
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
        **_HALVES,
    },
    # Of all frames together: each of them has 2 x 3 features.
    "files": {
        "video_preprocessor_config.json": {
            "min_pixels": 28 * 28,
            "max_pixels": 6 * 56 * 84,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "merge_size": 2,
            **_HALVES,
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
    "template": _PARTS_ONLY,
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
        **_HALVES,
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
        **_QWEN,
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
        **_QWEN,
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
        **_QWEN,
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
        **_QWEN,
        "text": _QWEN35_TEXT,
        "vision": {
            **SPECS["qwen3_vl"]["vision"],
            "model_type": "qwen3_5",
            "deepstack_visual_indexes": [],
        },
    },
    "qwen3_5_moe": {
        **_QWEN,
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


_CLIP: Config = {
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
    "vision": {**_CLIP, "model_type": "pixtral", "head_dim": 16, "image_size": 64},
    "processor": {
        "image_processor_type": "PixtralImageProcessor",
        "patch_size": {"height": 8, "width": 8},
        "size": {"longest_edge": 48},
        **_HALVES,
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
        "vision": {**_CLIP, "model_type": "siglip_vision_model"},
        "config": {"hidden_size": 32, "mm_tokens_per_image": 4, "pad_token_id": 0},
        "processor": {
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": 32, "width": 32},
            **_HALVES,
        },
        "files": {"processor_config.json": {"image_seq_length": 4}},
    },
    "internvl": {
        "special": ["<img>", "</img>", "<IMG_CONTEXT>"],
        "image": "<IMG_CONTEXT>",
        "ids": {"image_token_id": "<IMG_CONTEXT>"},
        "text": {**TEXT, "model_type": "qwen3", "head_dim": 8},
        "vision": {**_CLIP, "model_type": "internvl_vision"},
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
        "vision": {**_CLIP, "model_type": "siglip2_vision_model", "num_patches": 16},
        "config": {"encoder_patch_size": 8, "projector_hidden_size": 48},
        "processor": {
            "encoder_patch_size": 8,
            "min_image_tokens": 2,
            "max_image_tokens": 8,
            "tile_size": 32,
            **_HALVES,
        },
    },
    "llava": {
        "special": ["<image>"],
        "image": "<image>",
        "ids": {"image_token_index": "<image>"},
        "text": {**TEXT, "model_type": "llama"},
        "vision": {**_CLIP, "model_type": "clip_vision_model"},
        "config": {"vision_feature_layer": -2, "vision_feature_select_strategy": "default"},
        "processor": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
            **_HALVES,
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


_GEMMA4: Config = {
    "special": ["<|image|>", "<|image>", "<image|>", "<|video|>"],
    "named": {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>"},
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
    },
    "vision": {
        **_CLIP,
        "model_type": "gemma4_vision",
        "num_key_value_heads": 2,
        "head_dim": 16,
        "default_output_length": 6,
        "position_embedding_size": 64,
        "pooling_kernel_size": 2,
    },
    "config": {"audio_config": None, "hidden_size": 32},
    "processor": {
        "image_processor": {"patch_size": 8, "max_soft_tokens": 6, "pooling_kernel_size": 2}
    },
}
SPECS |= {
    "gemma4": _GEMMA4,
    "gemma4_unified": {
        **_GEMMA4,
        "text": {
            **_GEMMA4["text"],
            "model_type": "gemma4_unified_text",
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "use_double_wide_mlp": False,
            "use_bidirectional_attention": "vision",
            "sliding_window": 5,  # a picture has six tokens
        },
        "vision": {
            "model_type": "gemma4_unified_vision",
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "model_patch_size": 16,
            "mm_embed_dim": 32,
            "mm_posemb_size": 16,
            "output_proj_dims": 32,
        },
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
    "llava:pixtral": {**SPECS["pixtral"], "module": "pixtral"},
}


def picture(seed: int = 0, height: int = 50, width: int = 60) -> Picture:
    """Large squares of random colours."""
    rng = np.random.default_rng(seed)
    squares = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    return Picture(squares.repeat(8, axis=0).repeat(8, axis=1)[:height, :width].copy())


def video(seed: int = 0, frames: int = 5, fps: float = 2.0) -> Video:
    """Frames that have nothing to do with each other."""
    shown = tuple(picture(1000 * seed + number, 56, 84) for number in range(frames))
    return Video(shown, tuple(number / fps for number in range(frames)), frames / fps)


@cache
def folder_of(family: str) -> Path:
    """The checkpoint of a family; made once a process."""
    spec, folder = SPECS[family], Path(mkdtemp(prefix=f"{family}-"))
    tokenizer = _write_tokenizer(spec, folder)
    config = _config(family, spec, tokenizer)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(spec["processor"]))
    for name, content in spec.get("files", {}).items():
        (folder / name).write_text(json.dumps(content))
    weights = dict(tree_flatten(_random_model(family, config).parameters()))
    if spec.get("tied"):
        weights.pop("language_model.lm_head.weight", None)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    return folder


def _write_tokenizer(spec: Config, folder: Path) -> Any:
    named = spec.get("named", {})
    tokenizer = AutoTokenizer.from_pretrained(resolve(BUNDLED), extra_special_tokens=named)
    tokenizer.add_special_tokens({"additional_special_tokens": spec["special"]})
    template = spec.get("template", _PARTS).replace("IMAGE", spec["image"])
    tokenizer.chat_template = template.replace("VIDEO", spec.get("video", ""))
    tokenizer.save_pretrained(folder)
    return tokenizer


def _config(family: str, spec: Config, tokenizer: Any) -> Config:
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in spec["ids"].items()}
    text = {**spec["text"], "vocab_size": len(tokenizer)}
    config = {
        "model_type": family.partition(":")[0],
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        **ids,
        **spec.get("config", {}),
        "vision_config": spec["vision"],
    }
    return {**text, **config} if spec.get("flat_text") else {**config, "text_config": text}


def _random_model(family: str, config: Config) -> Any:
    """mlx-vlm's model, with weights large enough that pictures decide what is said."""
    from mlx_vlm.utils import get_model_and_args, update_module_configs

    name = SPECS[family].get("module", family)
    module = importlib.import_module(f"mlx_vlm.models.{name}")
    copied = {**json.loads(json.dumps(config)), "model_type": name}
    copied.setdefault("text_config", {})
    kind, _ = get_model_and_args(copied)
    made = module.ModelConfig.from_dict(copied)
    modules = ["text", "vision", "projector"]
    made = update_module_configs(made, kind, copied, modules)  # type: ignore[no-untyped-call]
    mx.random.seed(7)
    model: Any = module.Model(made)

    def spread(array: mx.array) -> mx.array:
        noise = mx.random.normal(array.shape) * 0.2
        return noise + 1.0 if array.ndim == 1 else noise

    model.update(tree_map(spread, model.parameters()))
    return model
