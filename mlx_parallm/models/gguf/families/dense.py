"""Decoders whose layers are attention and an MLP."""

from __future__ import annotations

import numpy as np

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.architecture import Architecture, Config, rotary_pairs
from mlx_parallm.models.gguf.names import ATTENTION, LLAMA, QK_NORM, TOP
from mlx_parallm.models.gguf.reader import GgufFile
from mlx_parallm.models.gguf.rope import rope_config

_PHI3 = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_STARCODER2 = ATTENTION | {
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def biases(file: GgufFile, prefix: str) -> Config:
    """Whether there are any; a file of Llama's kind does not say."""
    return {
        "attention_bias": "blk.0.attn_q.bias" in file.names,
        "mlp_bias": "blk.0.ffn_up.bias" in file.names,
    }


def partial_rotary(file: GgufFile, prefix: str) -> Config:
    """The share of a head that positions turn."""
    width = int(file.need(f"{prefix}.embedding_length"))
    head = width // int(file.need(f"{prefix}.attention.head_count"))
    head = int(file.get(f"{prefix}.attention.key_length", head))
    turned = int(file.get(f"{prefix}.rope.dimension_count", head))
    return {"partial_rotary_factor": turned / head}


def _qwen3(file: GgufFile, prefix: str) -> Config:
    """Some rank: their head says how likely the next word would be yes, and how likely no."""
    if "cls.output.weight" not in file.names:
        return {}
    template = str(file.get("tokenizer.chat_template.rerank", ""))
    labels = file.get(f"{prefix}.classifier.output_labels")
    places = template.find("{query}"), template.find("{document}")
    if labels != ["yes", "no"] or not 0 <= places[0] < places[1]:
        raise ModelLoadError(
            f"{file.path}: a classification head of the labels {labels} is not supported; that of "
            "yes and no is, with a template for ranking"
        )
    return {
        "architectures": ["Qwen3ForSequenceClassification"],
        "id2label": {"0": "yes"},
        "rank_template": template,
    }


def _yes_over_no(part: str, values: np.ndarray, config: Config) -> np.ndarray:
    """Of the two rows of the head the difference: its sigmoid is the first one's softmax."""
    return values[:1] - values[1:] if part == "cls.output.weight" else values


def _ministral3(file: GgufFile, prefix: str) -> Config:
    """Mistral's since 3: queries grow with their positions, beyond what was trained first."""
    rope = rope_config(file, prefix)
    scaling = rope["rope_scaling"]
    if not scaling or scaling["rope_type"] != "yarn":
        raise ModelLoadError(f"{file.path}: rotary positions of this kind are not supported")
    return {
        "rope_parameters": {
            **scaling,
            "rope_theta": rope["rope_theta"],
            "llama_4_scaling_beta": file.need(f"{prefix}.attention.temperature_scale"),
        },
    }


def _cohere(file: GgufFile, prefix: str) -> Config:
    return {
        "logit_scale": file.need(f"{prefix}.logit_scale"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in file.names,
    }


def granite_scales(file: GgufFile, prefix: str) -> Config:
    """What Granite multiplies by."""
    return {
        "embedding_multiplier": file.get(f"{prefix}.embedding_scale", 1.0),
        "attention_multiplier": file.need(f"{prefix}.attention.scale"),
        "residual_multiplier": file.get(f"{prefix}.residual_scale", 1.0),
        "logits_scaling": file.get(f"{prefix}.logit_scale", 1.0),
    }


def _granite(file: GgufFile, prefix: str) -> Config:
    return granite_scales(file, prefix) | biases(file, prefix)


DENSE = {
    "llama": Architecture("llama", more=biases, rows=rotary_pairs),
    "mistral3": Architecture("llama", more=biases, rows=rotary_pairs),
    "granite": Architecture("granite", more=_granite, rows=rotary_pairs),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture(
        "qwen3",
        LLAMA | QK_NORM,
        _qwen3,
        values=_yes_over_no,
        top=TOP | {"cls.output": "score"},
        unpacked=("cls.output.weight",),
    ),
    # What these see with is in another file; text has the same position in all axes.
    "qwen2vl": Architecture("qwen2"),
    "qwen3vl": Architecture("qwen3", LLAMA | QK_NORM),
    "phi3": Architecture("phi3", _PHI3, partial_rotary),
    "smollm3": Architecture("smollm3", more=biases, rows=rotary_pairs),
    "starcoder2": Architecture("starcoder2", _STARCODER2),
    "command-r": Architecture("cohere", LLAMA | QK_NORM, _cohere),
}
# A file of Mistral's kind says by a value that it is of the newer one.
MINISTRAL3 = Architecture("ministral3", more=_ministral3, rows=rotary_pairs, rotary=False)
