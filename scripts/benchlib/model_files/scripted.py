"""A model that says what a script tells it to: real weights, a real tokenizer, known answers.

For clients that need a model which calls their own tools: agents, SDKs. Nothing is learned. Each
token of a script's text follows one other token, so that a Llama without attention and without
an MLP, whose head knows for every token the next one, writes the text. The chat template chooses:
the first offered tool that has a script and was not called yet is called, then `END` is said.

Where a grammar forces other tokens than the script's, the model ends its answer as soon as it may,
and objects before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from mlx_parallm.models.sources.sources import BUNDLED_FOLDER

# The script of a conversation in which no tool is left to call.
END = ""
CONTEXT = 131_072
THINK = ("<think>", "</think>")

_WIDTH = 256
_HEAD = 8
_FLAG = 8
_EOS = "<|im_end|>"
# Bytes of a text that become one token; which of these is chosen keeps every token unique.
_PIECE_SIZES = (4, 5, 3, 6, 7, 8, 10, 12, 16, 24, 2)
_TEMPLATE = """\
{%- set state = namespace(called=[], next='') %}
{%- if tools %}{{- '<|im_start|>system\\n' }}
{%- for tool in tools %}{{- tool | tojson + '\\n' }}{%- endfor %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
{%- for call in message.tool_calls or [] %}{%- set tool_call = call.function %}
{%- set state.called = state.called + [tool_call.name] %}
{{- '<tool_call>' + (tool_call | tojson) + '</tool_call>' }}{%- endfor %}
{{- '<|im_end|>\\n' }}{%- endfor %}
{%- if add_generation_prompt %}
{%- for tool in tools or [] %}{%- set name = tool.function.name %}
{%- if name in scripts and name not in state.called and not state.next %}
{%- set state.next = name %}{%- endif %}{%- endfor %}
{{- '<|im_start|>assistant\\n' + scripts[state.next] }}{%- endif %}"""


def call(name: str, **arguments: Any) -> str:
    """The script's text for a call of a tool."""
    written = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>\n{written}\n</tool_call>"


def make(folder: Path, scripts: Mapping[str, str]) -> Path:
    """Write the model, in Hugging Face format.

    Args:
        folder: made where it is missing.
        scripts: name of a tool -> what is said when it is offered and was not called yet; END ->
            what is said else. THINK's markers may stand in one of them only.

    Returns:
        `folder`.

    Raises:
        ValueError: a text cannot be cut into tokens that stand nowhere else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = json.loads((BUNDLED_FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer, chains = _tokenizer(source, scripts)
    size = 1 + max(token["id"] for token in tokenizer["added_tokens"])
    eos = tokenizer["model"]["vocab"][_EOS]
    _write(folder / "tokenizer.json", tokenizer)
    _write(folder / "tokenizer_config.json", _tokenizer_config(scripts))
    _write(folder / "config.json", _config(size, eos))
    ends = {eos: 1.0, tokenizer["model"]["vocab"]["}"]: 0.5}
    weights = _weights(size, [[*chain, eos] for chain in chains], ends)
    save_file(weights, folder / "model.safetensors")
    return folder


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _tokenizer(
    source: dict[str, Any], scripts: Mapping[str, str]
) -> tuple[dict[str, Any], list[list[int]]]:
    """The bundled model's tokenizer with the scripts' tokens, and each script's token ids."""
    vocabulary: dict[str, int] = source["model"]["vocab"]
    kept = [token for token in source["added_tokens"] if token["special"]]
    texts: dict[str, list[str]] = {}
    used = set(vocabulary)
    for name, text in scripts.items():
        texts[name] = _pieces(_symbols(text), used)
        used |= set(texts[name])
    ids = dict(vocabulary)
    for piece in (piece for pieces in texts.values() for piece in pieces):
        ids[piece] = len(ids)
    starts = {name: f"<|script {place}|>" for place, name in enumerate(scripts)}
    special = [*((start, True) for start in starts.values()), *((mark, False) for mark in THINK)]
    for content, is_special in special:
        ids.setdefault(content, len(ids))
        kept.append(kept[0] | {"id": ids[content], "content": content, "special": is_special})
    model = source["model"] | {"vocab": ids}
    chains = [[ids[starts[name]], *(ids[piece] for piece in texts[name])] for name in scripts]
    return source | {"model": model, "added_tokens": kept}, chains


def _pieces(text: str, used: set[str]) -> list[str]:
    """The text cut into pieces that are not used yet; markers of thinking are pieces."""
    for mark in THINK:
        before, found, after = text.partition(mark)
        if found and mark not in used:
            begin = _pieces(before, used) if before else []
            taken = used | {*begin, mark}
            return [*begin, mark, *(_pieces(after, taken) if after else [])]
    found_pieces = _cut(text, used, set())
    if found_pieces is None:
        raise ValueError(f"cannot be told from other scripts: {text[:60]}")
    return found_pieces


def _cut(text: str, used: set[str], hopeless: set[int]) -> list[str] | None:
    """As _pieces; None where there is no way. `hopeless`: lengths of ends without one."""
    if not text:
        return []
    for size in _PIECE_SIZES:
        piece = text[:size]
        left = len(text) - len(piece)
        if piece in used or left in hopeless:
            continue
        rest = _cut(text[size:], used | {piece}, hopeless)
        if rest is not None:
            return [piece, *rest]
    hopeless.add(len(text))
    return None


def _symbols(text: str) -> str:
    """Each byte as byte-level tokenizers write it."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    table = [chr(byte) if byte in visible else chr(next(others)) for byte in range(256)]
    return "".join(table[byte] for byte in text.encode())


def _tokenizer_config(scripts: Mapping[str, str]) -> dict[str, Any]:
    starts = {name: f"<|script {place}|>" for place, name in enumerate(scripts)}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": _EOS,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        "chat_template": f"{{%- set scripts = {json.dumps(starts)} %}}\n{_TEMPLATE}",
    }


def _config(size: int, eos: int) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": _WIDTH,
        "intermediate_size": _HEAD,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": _HEAD,
        "vocab_size": size,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "eos_token_id": eos,
        "torch_dtype": "float32",
    }


def _weights(size: int, chains: list[list[int]], ends: dict[int, float]) -> dict[str, np.ndarray]:
    """A token's embedding is the head's row of the token after it.

    The first numbers of an embedding say whether a token is in no script.

    Args:
        ends: tokens that follow those in no script -> how much they are wanted.
    """
    rng = np.random.default_rng(0)
    embeddings = rng.choice(np.array([-1, 1], np.float32), (size, _WIDTH))
    head = np.zeros_like(embeddings)
    embeddings[:, :_FLAG] = _FLAG
    embeddings[[token for chain in chains for token in chain[:-1]], :_FLAG] = 0
    for chain in chains:
        for token, following in pairwise(chain):
            head[following] += embeddings[token]
    for token, weight in ends.items():
        head[token, :_FLAG] = weight * _FLAG
    layer = "model.layers.0"
    zeros = {"self_attn.o_proj": (_WIDTH, _HEAD), "mlp.down_proj": (_WIDTH, _HEAD)}
    zeros |= {f"self_attn.{name}_proj": (_HEAD, _WIDTH) for name in "qkv"}
    zeros |= {f"mlp.{name}_proj": (_HEAD, _WIDTH) for name in ("gate", "up")}
    return {
        "model.embed_tokens.weight": embeddings,
        "model.norm.weight": np.ones(_WIDTH, np.float32),
        "lm_head.weight": head,
        f"{layer}.input_layernorm.weight": np.ones(_WIDTH, np.float32),
        f"{layer}.post_attention_layernorm.weight": np.ones(_WIDTH, np.float32),
        **{f"{layer}.{name}.weight": np.zeros(shape, np.float32) for name, shape in zeros.items()},
    }
