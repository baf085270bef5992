"""Random models in GGUF files, written as llama.cpp's converter would, with a real vocabulary."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from mlx_parallm.models.loader import resolve
from tests.models.tiny_vocabularies import Vocabulary

WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD = 64, 96, 6, 4, 2, 16
EXPERTS = 4
# Those that subtract the mean.
ENCODERS = ("bert", "nomic-bert", "jina-bert-v2")
LAYER_NORM = ("starcoder2", "command-r", "cohere2", *ENCODERS)
Shapes = dict[str, tuple[int, ...]]


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of the bundled model: byte pairs."""
    model = json.loads((resolve("bundled") / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    return tokens, merges


def write(
    path: Path,
    architecture: str,
    kind: Kind | Sequence[Kind] = Kind.F32,
    *,
    pre: str = "gpt-2",
    tied: bool = False,
    values: dict[str, Any] | None = None,
    shapes: Shapes | None = None,
    special: Sequence[str] = (),
    template: str | Sequence[dict[str, str]] = "",
) -> Path:
    """One file. `kind`: of all weights, or several that take turns; `values`: metadata below the
    architecture's name; `shapes`: of all tensors, where `_shapes` does not know them; `special`:
    more tokens; `template`: of chats."""
    # Mixtral's files say that they are a Llama's.
    writer = gguf.GGUFWriter(path, "llama" if architecture == "mixtral" else architecture)
    tokens = _write_byte_pairs(writer, pre, special)
    if template:
        writer.add_chat_template(template)
    _write_metadata(writer, architecture, len(tokens), values or {})
    _write_weights(writer, architecture, kind, len(tokens), tied, shapes)
    return path


def write_sentence_piece(path: Path, pieces: Sequence[str], *, space_prefix: bool) -> Path:
    """A file with SentencePiece's kind of vocabulary: `pieces`, the best first."""
    writer = gguf.GGUFWriter(path, "llama")
    # As Gemma's, which has no prefix: defined by users, written as spaces.
    runs = [] if space_prefix else ["  ", "   ", "    "]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *runs, *pieces]
    types = [2, 3, 3] + [6] * 256 + [4] * len(runs) + [1] * len(pieces)
    _write_metadata(writer, "llama", len(tokens), {})
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(
        [0.0] * 259 + [-1000.0] * len(runs) + [-float(i) for i in range(len(pieces))]
    )
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_space_prefix(space_prefix)
    _write_weights(writer, "llama", Kind.F32, len(tokens), True)
    return path


def write_vocabulary(
    path: Path,
    vocabulary: Vocabulary,
    *,
    head: Sequence[str] = (),
    types: int = 2,
    kind: Kind = Kind.F32,
    architecture: str = "bert",
    layers: Callable[[int], Shapes] | None = None,
) -> Path:
    """A file with a vocabulary of any kind: an encoder for BERT's and T5's, else a Llama.
    `head`: labels of a classifier; `types`: of tokens, in an encoder; `kind`: of its weights;
    `layers`: shapes of all but these for a size of vocabulary, of an encoder other than BERT."""
    encoder = vocabulary.model in ("bert", "t5")
    architecture = architecture if encoder else "llama"
    writer = gguf.GGUFWriter(path, architecture)
    count = len(vocabulary.tokens)
    _write_metadata(writer, architecture, count, {})
    vocabulary.write(writer)
    shapes = layers(count) if layers else _shapes(architecture, count, True)
    if encoder:
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.RANK if head else gguf.PoolingType.MEAN)
        writer.add_token_type_count(types)
        shapes["token_types.weight"] = (types, WIDTH) if types > 1 else (WIDTH,)
    if head:
        writer.add_classifier_output_labels(head)
        shapes |= _linear("cls", WIDTH, WIDTH) | _linear("cls.output", len(head), WIDTH)
    _write_weights(writer, architecture, kind, count, True, shapes)
    return path


def _write_byte_pairs(writer: gguf.GGUFWriter, pre: str, special: Sequence[str] = ()) -> list[str]:
    tokens, merges = vocabulary()
    tokens = [*tokens, *special]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    control = [
        (token.startswith("<|") and token.endswith("|>")) or token in special for token in tokens
    ]
    writer.add_token_types([3 if special else 1 for special in control])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(control.index(True))
    writer.add_bos_token_id(control.index(True))
    writer.add_add_bos_token(False)
    return tokens


def _write_weights(
    writer: gguf.GGUFWriter,
    architecture: str,
    kinds: Kind | Sequence[Kind],
    vocab: int,
    tied: bool,
    shapes: Shapes | None = None,
) -> None:
    random = np.random.default_rng(3)
    if shapes is None:
        long_rope = f"{writer.arch}.rope.scaling.attn_factor" in writer.kv_data[0]
        shapes = _shapes(architecture, vocab, tied, long_rope)
    turns = itertools.cycle([kinds] if isinstance(kinds, Kind) else kinds)
    for name, shape in shapes.items():
        array = draw(random, name, shape, architecture)
        kind = next(turns) if len(shape) > 1 else Kind.F32
        blocks = len(shape) > 1 and shape[-1] % 32 == 0
        packed = blocks and "gate_inp" not in name and kind is not Kind.F32
        data = quantized(array, kind) if packed else array
        writer.add_tensor(name, data, raw_dtype=kind if packed else Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantized(values: np.ndarray, kind: Kind) -> np.ndarray:
    """As llama.cpp packs them; the test is skipped where its own code is needed and not there."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        code = pytest.importorskip("libgguf", reason="llama.cpp's quantisers are not installed")
        found: np.ndarray = code.quantize_rows(values, kind)
        return found


def _write_metadata(
    writer: gguf.GGUFWriter, architecture: str, vocab: int, values: dict[str, Any]
) -> None:
    epsilon = "layer_norm" if architecture in LAYER_NORM else "layer_norm_rms"
    common: dict[str, Any] = {
        "block_count": LAYERS,
        "context_length": 512,
        "embedding_length": WIDTH,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS if architecture in ENCODERS else KV_HEADS,
        "attention.key_length": HEAD,
        "attention.value_length": HEAD,
        "rope.dimension_count": HEAD,
        f"attention.{epsilon}_epsilon": 1e-5,
        "rope.freq_base": 10_000.0,
        "vocab_size": vocab,
    }
    for key, value in (common | values).items():
        if value is not None:
            _add(writer, key if "tokenizer" in key else f"{writer.arch}.{key}", value)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    adders: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
        list: writer.add_array,
    }
    adders[type(value)](key, value)


def _linear(name: str, out: int, into: int) -> Shapes:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _bert_shapes(vocab: int) -> Shapes:
    def norm(name: str) -> Shapes:
        return {f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)}

    shapes: Shapes = {
        "token_embd.weight": (vocab, WIDTH),
        "position_embd.weight": (512, WIDTH),
        "token_types.weight": (2, WIDTH),
    } | norm("token_embd_norm")
    for at in (f"blk.{layer}" for layer in range(LAYERS)):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes |= _linear(f"{at}.{name}", WIDTH, WIDTH)
        shapes |= _linear(f"{at}.ffn_up", HIDDEN, WIDTH) | _linear(f"{at}.ffn_down", WIDTH, HIDDEN)
        shapes |= norm(f"{at}.attn_output_norm") | norm(f"{at}.layer_output_norm")
    return shapes


def _shapes(architecture: str, vocab: int, tied: bool, long_rope: bool = False) -> Shapes:
    if architecture == "bert":
        return _bert_shapes(vocab)
    shapes: Shapes = {"token_embd.weight": (vocab, WIDTH), "output_norm.weight": (WIDTH,)}
    if not tied:
        shapes["output.weight"] = (vocab, WIDTH)
    if architecture == "starcoder2":
        shapes["output_norm.bias"] = (WIDTH,)
    if long_rope:
        shapes |= {f"rope_factors_{kind}.weight": (HEAD // 2,) for kind in ("long", "short")}
    for layer in range(LAYERS):
        named = _layer(architecture) | _mlp(architecture)
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in named.items()}
    return shapes


def _layer(architecture: str) -> Shapes:
    query, key = HEADS * HEAD, KV_HEADS * HEAD
    shapes: Shapes = {
        "attn_norm.weight": (WIDTH,),
        "ffn_norm.weight": (WIDTH,),
        "attn_q.weight": (query, WIDTH),
        "attn_k.weight": (key, WIDTH),
        "attn_v.weight": (key, WIDTH),
        "attn_output.weight": (WIDTH, query),
    }
    if architecture == "phi3":
        for part in ("q", "k", "v"):
            del shapes[f"attn_{part}.weight"]
        shapes["attn_qkv.weight"] = (query + 2 * key, WIDTH)
    if architecture == "command-r":
        del shapes["ffn_norm.weight"]  # attention and MLP read the same norm
    if architecture == "starcoder2":
        widths = {name: shape[0] for name, shape in shapes.items()}
        shapes |= {name.replace("weight", "bias"): (width,) for name, width in widths.items()}
    if architecture in ("qwen2", "qwen2moe"):
        shapes |= {"attn_q.bias": (query,), "attn_k.bias": (key,), "attn_v.bias": (key,)}
    if architecture == "gpt-oss":
        widths = {n: s[0] for n, s in shapes.items() if not n.endswith("norm.weight")}
        shapes |= {name.replace("weight", "bias"): (width,) for name, width in widths.items()}
        shapes |= {"attn_sinks.weight": (HEADS,), "post_attention_norm.weight": (WIDTH,)}
        del shapes["ffn_norm.weight"]
    if architecture in ("qwen3", "qwen3moe", "gemma3"):
        shapes |= {"attn_q_norm.weight": (HEAD,), "attn_k_norm.weight": (HEAD,)}
    if architecture in ("gemma2", "gemma3"):
        shapes |= {"post_attention_norm.weight": (WIDTH,), "post_ffw_norm.weight": (WIDTH,)}
    return shapes


def _mlp(architecture: str) -> Shapes:
    up, down = (HIDDEN, WIDTH), (WIDTH, HIDDEN)
    if architecture == "phi3":
        return {"ffn_up.weight": (2 * HIDDEN, WIDTH), "ffn_down.weight": down}
    if architecture == "starcoder2":
        return {
            "ffn_up.weight": up,
            "ffn_up.bias": (HIDDEN,),
            "ffn_down.weight": down,
            "ffn_down.bias": (WIDTH,),
        }
    if architecture == "qwen2moe":
        shared = {"gate_inp": (WIDTH,), "gate": up, "up": up, "down": down}
        return _experts(up, down) | {
            f"ffn_{part}_shexp.weight": shape for part, shape in shared.items()
        }
    if architecture == "gpt-oss":
        biases = {"gate": HIDDEN, "up": HIDDEN, "down": WIDTH}
        named = {f"ffn_{part}_exps.bias": (EXPERTS, width) for part, width in biases.items()}
        return _experts(up, down) | named | {"ffn_gate_inp.bias": (EXPERTS,)}
    if architecture.endswith("moe") or architecture == "mixtral":
        return _experts(up, down)
    return {"ffn_gate.weight": up, "ffn_up.weight": up, "ffn_down.weight": down}


def _experts(up: tuple[int, ...], down: tuple[int, ...]) -> Shapes:
    return {
        "ffn_gate_inp.weight": (EXPERTS, WIDTH),
        "ffn_gate_exps.weight": (EXPERTS, *up),
        "ffn_up_exps.weight": (EXPERTS, *up),
        "ffn_down_exps.weight": (EXPERTS, *down),
    }


def draw(
    random: np.random.Generator, name: str, shape: tuple[int, ...], architecture: str
) -> np.ndarray:
    """A random array that suits a tensor of this name."""
    if name == "rope_freqs.weight":  # Gemma 4's: a quarter of the pairs is turned
        return np.where(np.arange(*shape) < shape[0] / 4, 1, 1e30).astype(np.float32)
    noise = random.standard_normal(shape)
    if architecture == "gemma3n" and "post_" in name:  # small steps in its many layers
        noise = 0.2 + 0.04 * noise
    elif ("norm" in name and name.endswith(".weight")) or "scale" in name:
        noise = 1 + 0.2 * noise
    elif name.startswith("rope_factors"):
        noise = 1 + np.abs(noise)
    elif name.endswith("bias"):
        noise = 0.5 * noise
    elif name.startswith("token_embd"):
        noise = (0.1 if architecture.startswith("gemma") else 0.5) * noise
    elif "altup" in name:
        noise = 1.0 * noise / shape[-1] ** 0.5
    elif name.endswith("ssm_a"):
        noise = -0.1 - np.abs(noise)
    elif name.endswith("ssm_d"):
        noise = 1 + 0.2 * noise
    else:
        noise = noise * 2 / shape[-1] ** 0.5
    # Values that float16 has too, so that nothing is rounded on the way.
    return np.asarray(noise.astype(np.float16).astype(np.float32))
