"""The two architectures, and how they are saved as Hugging Face folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import llama
from tokenizers import Tokenizer

from .sample import PADDING, TURN_END

CONTEXT = 2048
VOCABULARY = 2304

TARGET = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
DRAFT = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 192,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}


def config(size: dict[str, int], tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json of a model of this size."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **size,
        "head_dim": size["hidden_size"] // size["num_attention_heads"],
        "vocab_size": tokenizer.get_vocab_size(),
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(TURN_END),
        "pad_token_id": tokenizer.token_to_id(PADDING),
        "torch_dtype": "float16",
        # What scripts/eval_extended_mind.py found best; see MemoryManager.
        "extended_mind": {"window": 128, "stride": 64, "local_offset": 64, "layers": [2]},
    }


def earlier_config(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json of a folder's model, with a vocabulary that may have grown."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return {**found, "vocab_size": tokenizer.get_vocab_size()}


def build(model_config: dict[str, Any], twins: list[tuple[int, int]], seed: int) -> llama.Model:
    """A model with fresh weights: normal(0.02), the writers into the residual stream smaller.

    The two ids of each of `twins` are one word with and without a leading space. They start with
    the same embedding, so that a word can be copied from one place to the other, say from a
    question into the JSON of a tool call.
    """
    mx.random.seed(seed)
    model = llama.Model(llama.ModelArgs.from_dict(model_config))
    depth = model_config["num_hidden_layers"]

    def fresh(name: str, weight: mx.array) -> mx.array:
        if weight.ndim < 2:
            return weight
        scale = 0.02 if "embed" in name else weight.shape[1] ** -0.5
        if "o_proj" in name or "down_proj" in name:
            scale /= (2 * depth) ** 0.5
        return mx.random.normal(weight.shape) * scale

    weights = [(name, fresh(name, weight)) for name, weight in named_weights(model)]
    model.load_weights(weights)
    if twins:
        spaced, bare = (mx.array(ids) for ids in zip(*twins, strict=True))
        embedding = model.model.embed_tokens
        embedding.weight[bare] = embedding.weight[spaced]
    mx.eval(model.parameters())
    return model


def continued(model_config: dict[str, Any], folder: Path) -> llama.Model:
    """The model of a folder. Words that its vocabulary lacks begin as the padding, the one token
    that is never said, so that what the model says does not change."""
    model = llama.Model(llama.ModelArgs.from_dict(model_config))
    loaded: Any = mx.load(str(folder / "model.safetensors"))
    weights = {name: weight.astype(mx.float32) for name, weight in loaded.items()}
    table = weights["model.embed_tokens.weight"]
    more = model_config["vocab_size"] - table.shape[0]
    padding = table[model_config["pad_token_id"]][None]
    weights["model.embed_tokens.weight"] = mx.concatenate([table, *[padding] * more])
    model.load_weights(list(weights.items()))
    mx.eval(model.parameters())
    return model


def named_weights(model: nn.Module) -> list[tuple[str, mx.array]]:
    found: Any = tree_flatten(model.parameters())
    return list(found)


def parameter_count(model: nn.Module) -> int:
    return sum(weight.size for _, weight in named_weights(model))


def save_model(model: nn.Module, model_config: dict[str, Any], folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors in float16."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.astype(mx.float16) for name, weight in named_weights(model)}
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    generation = {
        "eos_token_id": model_config["eos_token_id"],
        "pad_token_id": model_config["pad_token_id"],
        "do_sample": False,
    }
    for name, content in (("config.json", model_config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
