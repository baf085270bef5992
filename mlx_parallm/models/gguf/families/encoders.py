"""Encoders: BERT, RoBERTa and XLM-RoBERTa, which a file calls the same; with a head or without."""

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
    "cls": "classifier.dense",
    "cls.output": "classifier.out_proj",
}


def _bert(file: GgufFile, prefix: str) -> Config:
    types = file.tensor("token_types.weight")
    if types is None or file.tensor("position_embd.weight") is None:
        raise ModelLoadError(
            f"{file.path}: encoders in GGUF files are supported as BERT, RoBERTa and XLM-RoBERTa "
            "have them, with tables of positions and of types"
        )
    return {
        "type_vocab_size": types.shape[0] if len(types.shape) > 1 else 1,
        "pad_token_id": file.get("tokenizer.ggml.padding_token_id", 0),
        **_head(file, prefix),
    }


def _head(file: GgufFile, prefix: str) -> Config:
    """A classifier has an output, and mostly a layer before it."""
    if "cls.output.weight" not in file.names:
        if "cls.weight" in file.names:
            raise ModelLoadError(f"{file.path}: a classification head without its cls.output")
        return {"architectures": ["BertModel"]}
    labels = file.get(f"{prefix}.classifier.output_labels", [])
    return {
        "architectures": ["BertForSequenceClassification"],
        "id2label": {str(i): label for i, label in enumerate(labels)},
    }


def _one_type(part: str, values: np.ndarray, config: Config) -> np.ndarray:
    """Types of tokens are a vector where there is only one."""
    return values.reshape(1, -1) if part == "token_types.weight" and values.ndim == 1 else values


ENCODERS = {
    "bert": Architecture(
        "bert",
        _BERT,
        _bert,
        values=_one_type,
        top=_TOP,
        rotary=False,
        unpacked=("cls.weight", "cls.output.weight"),
    ),
}
