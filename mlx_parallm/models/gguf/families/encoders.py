"""Encoders: BERT, and XLM-RoBERTa, which a file calls the same."""

from __future__ import annotations

import numpy as np

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.architecture import Architecture, Config
from mlx_parallm.models.gguf.reader import GgufFile

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
_TOP = {
    "token_embd": "model.words",
    "position_embd": "model.positions",
    "token_types": "model.types",
    "token_embd_norm": "model.norm",
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


def _one_type(part: str, values: np.ndarray, config: Config) -> np.ndarray:
    """Types of tokens are a vector where there is only one."""
    return values.reshape(1, -1) if part == "token_types.weight" and values.ndim == 1 else values


ENCODERS = {
    "bert": Architecture("bert", _BERT, _bert, values=_one_type, top=_TOP, rotary=False),
}
