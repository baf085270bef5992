"""Architectures of GGUF files that are known here, and the config.json of a file.

llama.cpp's names and keys: gguf-py/gguf/constants.py. What its converter changes (rows of q and k,
norms plus one) is undone by each architecture's `rows` and `values`.
"""

from __future__ import annotations

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.architecture import Architecture, Config, largest
from mlx_parallm.models.gguf.families.dense import DENSE, MINISTRAL3
from mlx_parallm.models.gguf.families.encoders import ENCODERS, JINA_FUSED
from mlx_parallm.models.gguf.families.gemma import GEMMA
from mlx_parallm.models.gguf.families.hybrids import HYBRIDS
from mlx_parallm.models.gguf.families.mixtures import MIXTRAL, MIXTURES
from mlx_parallm.models.gguf.families.variants import OLMO3, VARIANTS
from mlx_parallm.models.gguf.reader import GgufFile
from mlx_parallm.models.gguf.rope import rope_config

ARCHITECTURES: dict[str, Architecture] = DENSE | VARIANTS | MIXTURES | HYBRIDS | GEMMA | ENCODERS


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
    return _variant(name, file) or ARCHITECTURES[name]


def _variant(name: str, file: GgufFile) -> Architecture | None:
    """Another architecture that a file's name stands for, too."""
    if name == "llama" and file.get("llama.expert_count"):
        return MIXTRAL
    if name == "mistral3" and file.get("mistral3.attention.temperature_scale"):
        return MINISTRAL3
    if name == "olmo2" and file.get("olmo2.attention.sliding_window"):
        return OLMO3
    if name == "jina-bert-v2" and "blk.0.ffn_gate.weight" not in file.names:
        return JINA_FUSED
    return None


def config_of(file: GgufFile) -> Config:
    """config.json of a file, without its quantisation and end tokens.

    Raises:
        ModelLoadError: the file lacks a value.
    """
    kind, prefix = architecture_of(file), str(file.need("general.architecture"))
    heads = int(largest(file.need(f"{prefix}.attention.head_count")))
    width = int(file.need(f"{prefix}.embedding_length"))
    epsilon = _epsilon(file, prefix)
    common: Config = {
        "model_type": kind.model_type,
        "hidden_size": width,
        "intermediate_size": largest(file.get(f"{prefix}.feed_forward_length", 0)),
        "num_hidden_layers": int(file.need(f"{prefix}.block_count"))
        - int(file.get(f"{prefix}.nextn_predict_layers", 0)),
        "num_attention_heads": heads,
        "num_key_value_heads": largest(file.get(f"{prefix}.attention.head_count_kv", heads)),
        "head_dim": file.get(f"{prefix}.attention.key_length", width // heads),
        "max_position_embeddings": file.need(f"{prefix}.context_length"),
        # One figure; which name a model reads is its own affair.
        **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "norm_epsilon"), epsilon),
        "vocab_size": len(file.need("tokenizer.ggml.tokens")),
        "tie_word_embeddings": "output.weight" not in file.names,
    }
    rotary = rope_config(file, prefix) if kind.rotary else {}
    whole = common | rotary | kind.more(file, prefix)
    if not kind.nested:
        return whole
    given = {name: value for name, value in whole.items() if value is not None}
    return given | {"text_config": given}


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
