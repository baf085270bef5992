"""Encoders: BERT, RoBERTa and XLM-RoBERTa, which a file calls the same; with a head or without."""

from __future__ import annotations

from typing import Any

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
_GATED = _BERT | {"ffn_gate": "gate"}
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
    return _common(file, prefix)


def _common(file: GgufFile, prefix: str) -> Config:
    types = file.tensor("token_types.weight")
    shape = (0, 0) if types is None else types.shape
    return {
        "type_vocab_size": shape[0] if len(shape) > 1 else 1,
        "pad_token_id": file.get("tokenizer.ggml.padding_token_id", 0),
        **_head(file, prefix),
    }


def _variant(file: GgufFile, prefix: str) -> Config:
    """What the two have otherwise than BERT."""
    parts = {part: name.rpartition(".")[2] for part, name in _GATED.items()}
    biases = [name for part, name in parts.items() if f"blk.0.{part}.bias" in file.names]
    if "blk.0.attn_qkv.bias" in file.names:
        biases += ["query", "key", "value"]
    return _common(file, prefix) | {"gated": True, "biases": biases}


def _nomic(file: GgufFile, prefix: str) -> Config:
    return _variant(file, prefix) | {
        "positions": "rotary",
        "hidden_act": "silu",
        "rope_theta": file.get(f"{prefix}.rope.freq_base", 10_000.0),
    }


def _jina(file: GgufFile, prefix: str) -> Config:
    return _variant(file, prefix) | {"positions": "alibi", "hidden_act": "gelu"}


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


_ENCODER: dict[str, Any] = {
    "values": _one_type,
    "top": _TOP,
    "rotary": False,
    "unpacked": ("cls.weight", "cls.output.weight"),
}
ENCODERS = {
    "bert": Architecture("bert", _BERT, _bert, **_ENCODER),
    "nomic-bert": Architecture(
        "bert",
        _GATED,
        _nomic,
        divided={"attn_qkv": ("attention.query", "attention.key", "attention.value")},
        **_ENCODER,
    ),
    "jina-bert-v2": Architecture("bert", _GATED, _jina, **_ENCODER),
}
# Newer files have its gate and what it opens in one tensor.
JINA_FUSED = Architecture(
    "bert",
    {part: name for part, name in _GATED.items() if part not in ("ffn_gate", "ffn_up")},
    _jina,
    divided={"ffn_up": ("gate", "up")},
    **_ENCODER,
)
