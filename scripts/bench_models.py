#!/usr/bin/env python3
"""Random Llama models for benchmarks and tests, made offline in Hugging Face format.

    scripts/bench_models.py 27m            # prints the folder, made on the first call
    scripts/bench_models.py 125m --out /somewhere

The weights are noise: speed does not depend on what a model says. The tokenizer is a
byte-level BPE with a built vocabulary of two-syllable words, so that a text of n words
from `words()` is exactly n tokens on any server.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SPECIAL_TOKENS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
SCHEME = 1  # raise it when what a folder contains changes

_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_VOWELS = "aeiouy"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model; all counts, `context` in tokens."""

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    context: int = 8192

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


SHAPES = {
    "tiny": Shape(64, 128, 2, 4, 2, 1024, tied=True, context=2048),
    "27m": Shape(512, 1376, 8, 8, 4, 8192, tied=True),
    "125m": Shape(768, 2048, 12, 12, 4, 32768, tied=False),
}


def ensure(name: str, folder: Path | None = None) -> Path:
    """The folder of the model `name`, made when it is not there yet.

    Args:
        name: a key of SHAPES.
        folder: where; default a cache folder of the user.

    Raises:
        ValueError: no model of that name.
    """
    if name not in SHAPES:
        raise ValueError(f"no model {name!r}; there are {', '.join(SHAPES)}")
    target = folder or _cache_folder() / f"{name}-{SCHEME}"
    if not (target / "config.json").is_file():
        _make(SHAPES[name], target)
    return target


def words(count: int, vocabulary: int, rng: random.Random) -> str:
    """Text of `count` random words: `count` tokens under the vocabulary of that size."""
    known = _words((vocabulary - _fixed_tokens()) // 2)
    return "".join(" " + rng.choice(known) for _ in range(count))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mlx_parallm" / "bench"


def _make(shape: Shape, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Made aside and moved at once: another process never sees half a model.
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        save_file(_weights(shape), work / "model.safetensors", metadata={"format": "pt"})
        _tokenizer(shape.vocabulary).save(str(work / "tokenizer.json"))
        _write(work / "tokenizer_config.json", _tokenizer_config(shape))
        _write(work / "config.json", _config(shape))
        work.replace(target)
    except OSError:
        if not (target / "config.json").is_file():  # else another process was first
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": shape.tied,
        "eos_token_id": 0,
        "torch_dtype": "float32",
    }


def _tokenizer_config(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[0],
        "model_max_length": shape.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }


def _weights(shape: Shape) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(columns**-0.5)

    kv_width = shape.kv_heads * shape.head_dim
    weights = {
        "model.embed_tokens.weight": matrix(shape.vocabulary, shape.width),
        "model.norm.weight": np.ones(shape.width, np.float32),
    }
    if not shape.tied:
        weights["lm_head.weight"] = matrix(shape.vocabulary, shape.width)
    for layer in range(shape.layers):
        sizes = {
            "self_attn.q_proj": (shape.width, shape.width),
            "self_attn.k_proj": (kv_width, shape.width),
            "self_attn.v_proj": (kv_width, shape.width),
            "self_attn.o_proj": (shape.width, shape.width),
            "mlp.gate_proj": (shape.inner, shape.width),
            "mlp.up_proj": (shape.inner, shape.width),
            "mlp.down_proj": (shape.width, shape.inner),
        }
        for name, (rows, columns) in sizes.items():
            weights[f"model.layers.{layer}.{name}.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(shape.width, np.float32)
    return weights


def _syllables() -> list[str]:
    low = [a + b for a, b in product(_CONSONANTS, _VOWELS)]
    return low + [s.capitalize() for s in low]


def _words(count: int) -> list[str]:
    """The first `count` two-syllable words; only their first letter may be a capital."""
    syllables = _syllables()
    lower = syllables[: len(syllables) // 2]
    found = [first + second for first, second in product(syllables, lower)]
    if count > len(found):
        raise ValueError(f"there are only {len(found)} words")
    return found[:count]


def _fixed_tokens() -> int:
    return len(SPECIAL_TOKENS) + 256 + len(_syllables())


def _tokenizer(vocabulary: int) -> Tokenizer:
    """Byte-level BPE: bytes, then syllables, then words, then words after a space.

    Vowels and consonants alternate, so no other merge can come first and every word
    is one token.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "Ġ"
    merges = [(s[0], s[1]) for s in _syllables()]
    spaced = (vocabulary - _fixed_tokens()) // 2
    known = _words(vocabulary - _fixed_tokens() - spaced)
    merges += [(word[:2], word[2:]) for word in known]
    merges += [(space, word) for word in known[:spaced]]
    tokens = [*SPECIAL_TOKENS, *alphabet, *(a + b for a, b in merges)]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def main() -> None:
    """Make the models named on the command line and print their folders."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--out", type=Path, help="parent folder; default: the user's cache")
    args = parser.parse_args()
    for name in args.names:
        print(ensure(name, args.out and args.out / name))


if __name__ == "__main__":
    main()
