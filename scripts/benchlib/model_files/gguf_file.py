"""A Llama model in Hugging Face format as a float32 GGUF file, for llama.cpp."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file


def ensure(folder: Path) -> Path:
    """The GGUF file beside a model's folder, written when it is not there yet.

    Raises:
        ValueError: not a Llama model in float32 with a byte-level tokenizer.
    """
    target = folder.with_name(f"{folder.name}-f32.gguf")
    if not target.is_file():
        unfinished = target.with_suffix(".part")
        _write(folder, unfinished)
        unfinished.replace(target)
    return target


def _write(folder: Path, target: Path) -> None:
    config = _read(folder / "config.json")
    tokenizer = _read(folder / "tokenizer.json")
    if config["model_type"] != "llama" or config["torch_dtype"] != "float32":
        raise ValueError(f"{folder}: only Llama models in float32 can be written as GGUF")
    if tokenizer["model"]["type"] != "BPE" or tokenizer["decoder"]["type"] != "ByteLevel":
        raise ValueError(f"{folder}: only byte-level tokenizers can be written as GGUF")
    writer = gguf.GGUFWriter(target, "llama")
    _add_sizes(writer, config)
    _add_tokenizer(writer, tokenizer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, values in load_file(folder / "model.safetensors").items():
        writer.add_tensor(_name(names, name), _values(name, values, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _add_sizes(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    heads = config["num_attention_heads"]
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: dict[str, Any], config: dict[str, Any]
) -> None:
    ids = tokenizer["model"]["vocab"]
    special = {token["content"] for token in tokenizer["added_tokens"]}
    tokens = sorted(ids, key=ids.__getitem__)
    kinds = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    merges = tokenizer["model"]["merges"]
    # "smollm" is GPT-2's expression with every digit alone.
    digits = "Digits" in json.dumps(tokenizer["pre_tokenizer"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if digits else "gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)


def _name(names: gguf.TensorNameMap, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight",))
    if found is None:
        raise ValueError(f"no name in GGUF for the weight {name}")
    return found


def _values(name: str, values: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}
    part = name.split(".")[-2]
    return pairs_from_halves(values, config[heads[part]]) if part in heads else values


def pairs_from_halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K for RoPE on pairs (2i, 2i + 1) from rows for halves (i, i + d/2).

    Args:
        values: (heads * head dim, width).
    """
    split = values.reshape(heads, 2, -1, values.shape[1])
    return np.ascontiguousarray(split.swapaxes(1, 2).reshape(values.shape))
