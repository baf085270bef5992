"""Gemma 2, 3, 3n and 4."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.architecture import (
    Architecture,
    Config,
    each_layer,
    norms_minus_one,
)
from mlx_parallm.models.gguf.names import LLAMA, QK_NORM, TOP
from mlx_parallm.models.gguf.reader import GgufFile

_GEMMA2_27B_LAYERS = 46
_NOT_TURNED = 1e20  # pairs that keep their place have their frequency divided by more

_GEMMA2 = LLAMA | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA3 = _GEMMA2 | QK_NORM
_GEMMA4 = _GEMMA3 | {
    "layer_output_scale.weight": "layer_scalar",
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "pre_ffw_norm_2": "pre_feedforward_layernorm_2",
    "post_ffw_norm_1": "post_feedforward_layernorm_1",
    "post_ffw_norm_2": "post_feedforward_layernorm_2",
    "ffn_gate_inp": "router.proj",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_gate_exps": "experts.switch_glu.gate_proj",
    "ffn_up_exps": "experts.switch_glu.up_proj",
    "ffn_down_exps": "experts.switch_glu.down_proj",
    "ffn_down_exps.scale": "router.per_expert_scale",
}
_GEMMA4_TOP = TOP | {
    "per_layer_token_embd": "model.embed_tokens_per_layer",
    "per_layer_model_proj": "model.per_layer_model_projection",
    "per_layer_proj_norm": "model.per_layer_projection_norm",
}


_INNER = "model.language_model"
_GEMMA3N = _GEMMA3 | {
    "inp_gate": "per_layer_input_gate",
    "proj": "per_layer_projection",
    "post_norm": "post_per_layer_input_norm",
    "altup_correct_coef": "altup.correction_coefs",
    "altup_correct_scale.weight": "altup.correct_output_scale",
    "altup_predict_coef": "altup.prediction_coefs",
    "altup_router": "altup.modality_router",
    "altup_router_norm": "altup.router_norm",
    "laurel_l": "laurel.linear_left",
    "laurel_r": "laurel.linear_right",
    "laurel_post_norm": "laurel.post_laurel_norm",
}
_GEMMA3N_TOP = {
    part: name.replace("model.", f"{_INNER}.", 1)
    for part, name in _GEMMA4_TOP.items()
    if part != "output"
}
_ALTUP_INPUTS = 4
_ALTUP_CLIP = 120.0  # in all published models; llama.cpp does not clip


def _gemma2(file: GgufFile, prefix: str) -> Config:
    return {
        # As llama.cpp: of all sizes but the largest, which divides by another figure.
        "query_pre_attn_scalar": file.need(f"{prefix}.attention.key_length")
        if file.need(f"{prefix}.block_count") != _GEMMA2_27B_LAYERS
        else file.need(f"{prefix}.embedding_length") / file.need(f"{prefix}.attention.head_count"),
        "attn_logit_softcapping": file.get(f"{prefix}.attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.get(f"{prefix}.final_logit_softcapping", 30.0),
    }


def _gemma3(file: GgufFile, prefix: str) -> Config:
    return {
        "query_pre_attn_scalar": file.need(f"{prefix}.attention.key_length"),
        "sliding_window": file.need(f"{prefix}.attention.sliding_window"),
        "sliding_window_pattern": file.get(f"{prefix}.attention.sliding_window_pattern", 6),
        "rope_local_base_freq": file.get(f"{prefix}.rope.freq_base_swa", 10_000.0),
    }


def _gemma3n(file: GgufFile, prefix: str) -> Config:
    count = int(file.need(f"{prefix}.block_count"))
    sliding = each_layer(file, f"{prefix}.attention.sliding_window_pattern", count)
    scales = each_layer(file, f"{prefix}.activation_sparsity_scale", count)
    laurel = file.tensor("blk.0.laurel_l.weight")
    if file.need(f"{prefix}.altup.num_inputs") != _ALTUP_INPUTS or laurel is None:
        raise ModelLoadError(f"{file.path}: its alternating updates are not Gemma 3n's")
    return {
        "layer_types": ["sliding_attention" if it else "full_attention" for it in sliding],
        "sliding_window": file.need(f"{prefix}.attention.sliding_window"),
        "num_kv_shared_layers": file.get(f"{prefix}.attention.shared_kv_layers", 0),
        "rope_local_base_freq": file.get(f"{prefix}.rope.freq_base_swa", 10_000.0),
        "final_logit_softcapping": file.get(f"{prefix}.final_logit_softcapping", 30.0),
        "hidden_size_per_layer_input": file.need(f"{prefix}.embedding_length_per_layer_input"),
        "vocab_size_per_layer_input": len(file.need("tokenizer.ggml.tokens")),
        # The share of values that fall away, of how many deviations they are below.
        "activation_sparsity_pattern": [0.5 * (1 + math.erf(it / math.sqrt(2))) for it in scales],
        "altup_num_inputs": _ALTUP_INPUTS,
        "altup_active_idx": file.need(f"{prefix}.altup.active_idx"),
        "altup_coef_clip": _ALTUP_CLIP,
        "altup_correct_scale": True,
        "laurel_rank": laurel.shape[0],
    }


def _stacked_rows(part: str, rows: np.ndarray, config: Config) -> np.ndarray:
    """Several matrices as one, below each other."""
    return rows.reshape(-1, rows.shape[-1]) if part in _STACKED else rows


def _gemma4(file: GgufFile, prefix: str) -> Config:
    count = int(file.need(f"{prefix}.block_count"))
    sliding = each_layer(file, f"{prefix}.attention.sliding_window_pattern", count)
    shared = int(file.get(f"{prefix}.attention.shared_kv_layers", 0))
    return {
        "layer_types": ["sliding_attention" if it else "full_attention" for it in sliding],
        "sliding_window": file.need(f"{prefix}.attention.sliding_window"),
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": file.get(f"{prefix}.embedding_length_per_layer_input", 0),
        "vocab_size_per_layer_input": len(file.need("tokenizer.ggml.tokens")),
        "final_logit_softcapping": file.get(f"{prefix}.final_logit_softcapping", 30.0) or None,
        "rope_parameters": _gemma4_rope(file, prefix),
        **_gemma4_heads(file, prefix, sliding),
        **_gemma4_widths(file, prefix, count - shared, count),
        **_gemma4_experts(file, prefix),
    }


def _gemma4_heads(file: GgufFile, prefix: str, sliding: list[bool]) -> Config:
    """Layers that see all have larger heads, fewer of K, and in the large models no V."""
    counts = each_layer(file, f"{prefix}.attention.head_count_kv", len(sliding))
    full = [i for i, it in enumerate(sliding) if not it]
    return {
        "head_dim": file.need(f"{prefix}.attention.key_length_swa"),
        "global_head_dim": file.need(f"{prefix}.attention.key_length"),
        "num_key_value_heads": next((counts[i] for i, it in enumerate(sliding) if it), counts[0]),
        "num_global_key_value_heads": counts[full[0]] if full else None,
        "attention_k_eq_v": bool(full) and f"blk.{full[0]}.attn_v.weight" not in file.names,
    }


def _gemma4_widths(file: GgufFile, prefix: str, own: int, count: int) -> Config:
    """Layers that share K and V may have an MLP of twice the width."""
    widths = each_layer(file, f"{prefix}.feed_forward_length", count)
    width, wide = int(widths[0]), int(widths[-1])
    if wide not in (width, 2 * width) or widths != [width] * own + [wide] * (count - own):
        raise ModelLoadError(f"{file.path}: MLPs of the widths {widths} are not supported")
    return {"intermediate_size": width, "use_double_wide_mlp": wide > width}


def _gemma4_experts(file: GgufFile, prefix: str) -> Config:
    experts = int(file.get(f"{prefix}.expert_count", 0))
    if not experts:
        return {"enable_moe_block": False}
    return {
        "enable_moe_block": True,
        "num_experts": experts,
        "top_k_experts": file.need(f"{prefix}.expert_used_count"),
        "moe_intermediate_size": file.need(f"{prefix}.expert_feed_forward_length"),
    }


def _gemma4_rope(file: GgufFile, prefix: str) -> dict[str, dict[str, Any]]:
    """Windows turn all of a head; layers that see all turn the pairs whose factor is 1."""
    factors = file.tensor("rope_freqs.weight")
    table = np.ones(1) if factors is None else np.array(factors.data)
    turned = int(np.sum(table < _NOT_TURNED))
    whole = file.need(f"{prefix}.attention.key_length_swa")
    plain = file.get(f"{prefix}.rope.scaling.type", "none") == "none"
    regular = np.all(table[:turned] == 1) and np.all(table[turned:] >= _NOT_TURNED)
    if not (plain and regular) or file.get(f"{prefix}.rope.dimension_count_swa", whole) != whole:
        raise ModelLoadError(f"{file.path}: rotary positions of this kind are not supported")
    return {
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": turned / len(table),
            "rope_theta": file.get(f"{prefix}.rope.freq_base", 1_000_000.0),
        },
        "sliding_attention": {
            "rope_type": "default",
            "rope_theta": file.get(f"{prefix}.rope.freq_base_swa", 10_000.0),
        },
    }


_STACKED = ("altup_proj.weight", "altup_unembd_proj.weight")


def _each_input(name: str) -> tuple[str, ...]:
    return tuple(f"{_INNER}.{name}.{i}" for i in range(_ALTUP_INPUTS - 1))


GEMMA = {
    "gemma3n": Architecture(
        "gemma3n",
        _GEMMA3N,
        _gemma3n,
        rows=_stacked_rows,
        divided={
            "altup_proj": _each_input("altup_projections"),
            "altup_unembd_proj": _each_input("altup_unembed_projections"),
        },
        top=_GEMMA3N_TOP,
        body=_INNER,
        nested=True,
        wide_range=True,
    ),
    "gemma2": Architecture("gemma2", _GEMMA2, _gemma2, values=norms_minus_one, wide_range=True),
    "gemma3": Architecture(
        "gemma3_text", _GEMMA3, _gemma3, values=norms_minus_one, wide_range=True
    ),
    "gemma4": Architecture(
        "gemma4_text",
        _GEMMA4,
        _gemma4,
        divided={
            "ffn_gate_up_exps": (
                "experts.switch_glu.gate_proj",
                "experts.switch_glu.up_proj",
            )
        },
        top=_GEMMA4_TOP,
        rotary=False,
        wide_range=True,
    ),
}
