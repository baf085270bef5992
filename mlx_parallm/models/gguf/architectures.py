"""Architectures of GGUF files: mlx-lm's name for each tensor, and the config.json.

llama.cpp's names and keys: gguf-py/gguf/constants.py. What its converter changes (rows of q and k,
norms plus one) is undone in weights.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.reader import GgufFile
from mlx_parallm.models.gguf.rope import rope_config

Config = dict[str, Any]
_GEMMA2_27B_LAYERS = 46

_ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_LLAMA = _ATTENTION | _MLP | {"ffn_norm": "post_attention_layernorm"}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.switch_mlp.gate_proj",
    "ffn_up_exps": "mlp.switch_mlp.up_proj",
    "ffn_down_exps": "mlp.switch_mlp.down_proj",
}
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_MIXTRAL_EXPERTS = {
    part: f"block_sparse_moe.{name.removeprefix('mlp.')}" for part, name in _EXPERTS.items()
}
_PHI3 = {
    "attn_norm": "input_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_STARCODER2 = _ATTENTION | {
    "ffn_norm": "post_attention_layernorm",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_GEMMA2 = _LLAMA | {
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA3 = _GEMMA2 | _QK_NORM
_GPT_OSS = _ATTENTION | {
    "attn_sinks": "self_attn.sinks",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
# Arrays of a module's own, which llama.cpp calls its weight.
_BARE = ("attn_sinks",)
_BERT = {
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "attn_output_norm": "attention_norm",
    "ffn_up": "up",
    "ffn_down": "down",
    "layer_output_norm": "norm",
}
_BERT_TOP = {
    "token_embd": "model.words",
    "position_embd": "model.positions",
    "token_types": "model.types",
    "token_embd_norm": "model.norm",
}
_TOP = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
# Tables that mlx-lm computes, or that rope_config has read.
_LEFT_OUT = ("rope_freqs", "attn_rot_embd", "rope_factors_long", "rope_factors_short")


@dataclass(frozen=True)
class Architecture:
    """How one of llama.cpp's architectures maps to one of mlx-lm's.

    Attributes:
        model_type: mlx-lm's.
        parts: names within a layer.
        more: entries of config.json beyond the common ones.
        top: names outside of layers.
        rotary: whether positions are rotations, and not a table.
        permuted: whether rows of q and k are in llama.cpp's order of rotary pairs.
        norms_plus_one: whether norms are stored with 1 added.
        wide_range: activations may exceed float16.
    """

    model_type: str
    parts: Mapping[str, str] = field(default_factory=lambda: _LLAMA)
    more: Callable[[GgufFile, str], Config] = lambda file, prefix: {}
    permuted: bool = False
    norms_plus_one: bool = False
    wide_range: bool = False
    top: Mapping[str, str] = field(default_factory=lambda: _TOP)
    rotary: bool = True

    def name(self, stored: str) -> str | None:
        """mlx-lm's name of a tensor; None for one that is not needed.

        Raises:
            ModelLoadError: a tensor that this table does not know.
        """
        stem, _, suffix = stored.rpartition(".")
        if stem in self.top:
            return f"{self.top[stem]}.{suffix}"
        part = stem.split(".")[-1]
        if part in _LEFT_OUT:
            return None
        if not stem.startswith("blk.") or part not in self.parts:
            raise ModelLoadError(
                f"the tensor {stored} is not known in GGUF files of this architecture"
            )
        name = f"model.layers.{stem.split('.')[1]}.{self.parts[part]}"
        return name if part in _BARE else f"{name}.{suffix}"


def _moe(file: GgufFile, prefix: str) -> Config:
    return {
        "num_experts": file.need(f"{prefix}.expert_count"),
        "num_experts_per_tok": file.need(f"{prefix}.expert_used_count"),
        "moe_intermediate_size": file.need(f"{prefix}.expert_feed_forward_length"),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
    }


def _mixtral(file: GgufFile, prefix: str) -> Config:
    return {
        "num_local_experts": file.need(f"{prefix}.expert_count"),
        "num_experts_per_tok": file.need(f"{prefix}.expert_used_count"),
    }


def _qwen2_moe(file: GgufFile, prefix: str) -> Config:
    return _moe(file, prefix) | {
        "norm_topk_prob": False,
        "shared_expert_intermediate_size": file.need(f"{prefix}.expert_shared_feed_forward_length"),
    }


def _phi3(file: GgufFile, prefix: str) -> Config:
    width = int(file.need(f"{prefix}.embedding_length"))
    head = width // int(file.need(f"{prefix}.attention.head_count"))
    turned = int(file.get(f"{prefix}.rope.dimension_count", head))
    return {"partial_rotary_factor": turned / head}


def _gpt_oss(file: GgufFile, prefix: str) -> Config:
    return {
        "num_local_experts": file.need(f"{prefix}.expert_count"),
        "num_experts_per_tok": file.need(f"{prefix}.expert_used_count"),
        "intermediate_size": file.need(f"{prefix}.expert_feed_forward_length"),
        "sliding_window": file.need(f"{prefix}.attention.sliding_window"),
    }


def _cohere(file: GgufFile, prefix: str) -> Config:
    return {
        "logit_scale": file.need(f"{prefix}.logit_scale"),
        "use_qk_norm": "blk.0.attn_q_norm.weight" in file.names,
    }


def _gemma2(file: GgufFile, prefix: str) -> Config:
    return {
        # As llama.cpp: of all sizes but the largest, which divides by another figure.
        "query_pre_attn_scalar": file.need(f"{prefix}.attention.key_length")
        if file.need(f"{prefix}.block_count") != _GEMMA2_27B_LAYERS
        else file.need(f"{prefix}.embedding_length") / file.need(f"{prefix}.attention.head_count"),
        "attn_logit_softcapping": file.get(f"{prefix}.attn_logit_softcapping", 50.0),
        "final_logit_softcapping": file.get(f"{prefix}.final_logit_softcapping", 30.0),
    }


def _mistral(file: GgufFile, prefix: str) -> Config:
    window = file.get(f"{prefix}.attention.sliding_window")
    return {"sliding_window": window} if window else {}


def _gemma3(file: GgufFile, prefix: str) -> Config:
    return {
        "query_pre_attn_scalar": file.need(f"{prefix}.attention.key_length"),
        "sliding_window": file.need(f"{prefix}.attention.sliding_window"),
        "sliding_window_pattern": file.get(f"{prefix}.attention.sliding_window_pattern", 6),
        "rope_local_base_freq": file.get(f"{prefix}.rope.freq_base_swa", 10_000.0),
    }


def _granite(file: GgufFile, prefix: str) -> Config:
    return {
        "embedding_multiplier": file.get(f"{prefix}.embedding_scale", 1.0),
        "attention_multiplier": file.need(f"{prefix}.attention.scale"),
        "residual_multiplier": file.get(f"{prefix}.residual_scale", 1.0),
        "logits_scaling": file.get(f"{prefix}.logit_scale", 1.0),
        "attention_bias": "blk.0.attn_q.bias" in file.names,
        "mlp_bias": "blk.0.ffn_up.bias" in file.names,
    }


def _bert(file: GgufFile, prefix: str) -> Config:
    types = file.tensor("token_types.weight")
    if types is None or file.tensor("cls.weight") is not None:
        raise ModelLoadError(
            f"{file.path}: encoders in GGUF files are served for their embeddings, as BERT's "
            "and XLM-RoBERTa's; one with a classification head needs its safetensors"
        )
    return {
        "type_vocab_size": types.shape[0] if len(types.shape) > 1 else 1,
        "pad_token_id": file.get("tokenizer.ggml.padding_token_id", 0),
        "architectures": ["BertModel"],
    }


def _llama(file: GgufFile, prefix: str) -> Config:
    return {
        "attention_bias": "blk.0.attn_q.bias" in file.names,
        "mlp_bias": "blk.0.ffn_up.bias" in file.names,
    }


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", more=_llama, permuted=True),
    "mistral3": Architecture("llama", more=_mistral, permuted=True),
    "granite": Architecture("granite", more=_granite, permuted=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3", _LLAMA | _QK_NORM),
    "qwen3moe": Architecture("qwen3_moe", _LLAMA | _QK_NORM | _EXPERTS, _moe),
    "qwen2moe": Architecture("qwen2_moe", _LLAMA | _EXPERTS | _SHARED_EXPERT, _qwen2_moe),
    "gemma2": Architecture("gemma2", _GEMMA2, _gemma2, norms_plus_one=True, wide_range=True),
    "gemma3": Architecture("gemma3_text", _GEMMA3, _gemma3, norms_plus_one=True, wide_range=True),
    "gpt-oss": Architecture("gpt_oss", _GPT_OSS, _gpt_oss),
    "phi3": Architecture("phi3", _PHI3, _phi3),
    "smollm3": Architecture("smollm3", more=_llama, permuted=True),
    "starcoder2": Architecture("starcoder2", _STARCODER2),
    "bert": Architecture("bert", _BERT, _bert, top=_BERT_TOP, rotary=False),
    "command-r": Architecture("cohere", _LLAMA | _QK_NORM, _cohere),
}
# A file of Mixtral says that it is a Llama with experts.
_MIXTRAL = Architecture("mixtral", _LLAMA | _MIXTRAL_EXPERTS, _mixtral, permuted=True)


def architecture_of(file: GgufFile) -> Architecture:
    """The table's entry for a file.

    Raises:
        ModelLoadError: an architecture that is not in the table, by its name.
    """
    name = str(file.need("general.architecture"))
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelLoadError(
            f"{file.path}: GGUF files of the architecture {name} are not supported, only {known}"
        )
    if name == "llama" and file.get("llama.expert_count"):
        return _MIXTRAL
    return ARCHITECTURES[name]


def config_of(file: GgufFile) -> Config:
    """config.json of a file, without its quantisation and end tokens.

    Raises:
        ModelLoadError: the file lacks a value.
    """
    kind, prefix = architecture_of(file), str(file.need("general.architecture"))
    heads = int(file.need(f"{prefix}.attention.head_count"))
    width = int(file.need(f"{prefix}.embedding_length"))
    epsilon = _epsilon(file, prefix)
    common: Config = {
        "model_type": kind.model_type,
        "hidden_size": width,
        "intermediate_size": file.get(f"{prefix}.feed_forward_length", 0),
        "num_hidden_layers": file.need(f"{prefix}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": file.get(f"{prefix}.attention.head_count_kv", heads),
        "head_dim": file.get(f"{prefix}.attention.key_length", width // heads),
        "max_position_embeddings": file.need(f"{prefix}.context_length"),
        # One figure; which name a model reads is its own affair.
        **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "norm_epsilon"), epsilon),
        "vocab_size": len(file.need("tokenizer.ggml.tokens")),
        "tie_word_embeddings": "output.weight" not in file.names,
    }
    rotary = rope_config(file, prefix) if kind.rotary else {}
    return common | rotary | kind.more(file, prefix)


def pooling_config(file: GgufFile) -> Config:
    """sentence-transformers' 1_Pooling/config.json; empty where the file does not say."""
    kind = file.get(f"{file.need('general.architecture')}.pooling_type")
    modes = {1: "mean_tokens", 2: "cls_token", 3: "lasttoken"}
    return {f"pooling_mode_{modes[kind]}": True} if kind in modes else {}


def _epsilon(file: GgufFile, prefix: str) -> float:
    """Of all norms, as the number that was written before it became float32."""
    found = file.get(f"{prefix}.attention.layer_norm_rms_epsilon")
    if found is None:
        found = file.need(f"{prefix}.attention.layer_norm_epsilon")
    return float(f"{float(found):.6g}")
