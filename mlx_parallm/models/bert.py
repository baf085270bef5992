"""BERT-family encoders (bert, roberta, xlm-roberta), for embeddings, classes and ranking.

Nomic's and Jina's, which differ in positions and MLP, are known by GGUF files only.

Every token attends to every other one, so a text is computed whole: `whole_sequence`
tells the engine that it must not be cut into chunks, and nothing is kept between steps.
Weights have the names that transformers writes, with or without a "bert." in front.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
from mlx import nn
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.models.cache import ArraysCache

from mlx_parallm.models.limits import MAX_WIDTH

MODEL_TYPES = frozenset({"bert", "roberta", "xlm-roberta"})

_ACTIVATIONS: dict[str, Callable[[mx.array], mx.array]] = {
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "relu": nn.relu,
    "silu": nn.silu,
}
_LINEAR = ("query", "key", "value", "output", "gate", "up", "down")
_ALIBI = 8.0  # how far attention's steepest slope falls, as an exponent of 2
_PREFIX = re.compile(r"^(bert|roberta|model)\.")
# In this order: the longer names first.
_RENAMES = (
    ("LayerNorm.gamma", "LayerNorm.weight"),
    ("LayerNorm.beta", "LayerNorm.bias"),
    ("encoder.layer.", "layers."),
    ("attention.self.", "attention."),
    ("attention.output.dense.", "attention.output."),
    ("attention.output.LayerNorm.", "attention_norm."),
    ("intermediate.dense.", "up."),
    (".output.dense.", ".down."),
    (".output.LayerNorm.", ".norm."),
    ("embeddings.word_embeddings.", "words."),
    ("embeddings.position_embeddings.", "positions."),
    ("embeddings.token_type_embeddings.", "types."),
    ("embeddings.LayerNorm.", "norm."),
)
_UNUSED = (
    "pooler.",
    "classifier.",
    "cls.",
    "lm_head.",
    "embeddings.position_ids",
    "embeddings.token_type_ids",
)


@dataclass
class ModelArgs(BaseModelArgs):
    """config.json, as transformers writes it, and what GGUF files have beside.

    Attributes:
        positions: "absolute" is a table, "rotary" and "alibi" act on attention.
        gated: whether the MLP has a gate.
        biases: of layers, the linear maps that have one.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_act: str = "gelu"
    pad_token_id: int = 0
    position_embedding_type: str = "absolute"
    positions: Literal["absolute", "rotary", "alibi"] = "absolute"
    rope_theta: float = 10_000.0
    gated: bool = False
    biases: Sequence[str] = _LINEAR

    def __post_init__(self) -> None:
        if self.position_embedding_type != "absolute":
            raise ValueError(f"positions of kind {self.position_embedding_type!r}")
        if self.hidden_act not in _ACTIVATIONS:
            raise ValueError(f"the activation {self.hidden_act!r}")

    @property
    def first_position(self) -> int:
        """Of a text's first token: roberta's begin behind the padding's."""
        return 0 if self.model_type == "bert" else self.pad_token_id + 1


class Attention(nn.Module):
    """Every token attends to every real one."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        size = args.hidden_size
        self.num_heads = args.num_attention_heads
        for name in ("query", "key", "value", "output"):
            setattr(self, name, nn.Linear(size, size, bias=name in args.biases))
        self._rope = (
            nn.RoPE(size // self.num_heads, base=args.rope_theta)
            if args.positions == "rotary"
            else None
        )

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        """(B, T, D); the mask is (B, 1, 1, T) bool, or something to add, (B or 1, H, T, T)."""
        batch, width, size = x.shape
        q, k, v = (
            layer(x).reshape(batch, width, self.num_heads, -1).swapaxes(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        if self._rope is not None:
            q, k = self._rope(q), self._rope(k)
        scale = (size // self.num_heads) ** -0.5
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask=mask)
        projected: mx.array = self.output(y.swapaxes(1, 2).reshape(batch, width, size))
        return projected


def _slopes(heads: int) -> mx.array:
    """Of each head: Press et al., arXiv 2108.12409."""
    even = 2 ** int(math.log2(heads))
    first = [2 ** (-_ALIBI * (i + 1) / even) for i in range(even)]
    between = [2 ** (-_ALIBI / 2 * (2 * i + 1) / even) for i in range(heads - even)]
    return mx.array(first + between)


class Layer(nn.Module):
    """Attention and MLP, each normalised behind its residual."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        size, eps = args.hidden_size, args.layer_norm_eps
        self.attention = Attention(args)
        self.attention_norm = nn.LayerNorm(size, eps=eps)
        wide, biases = args.intermediate_size, args.biases
        self.up = nn.Linear(size, wide, bias="up" in biases)
        self.down = nn.Linear(wide, size, bias="down" in biases)
        self.gate = nn.Linear(size, wide, bias="gate" in biases) if args.gated else None
        self.norm = nn.LayerNorm(size, eps=eps)
        self._activation = _ACTIVATIONS[args.hidden_act]

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        """(B, T, D) to (B, T, D)."""
        x = self.attention_norm(x + self.attention(x, mask))
        out: mx.array = self.norm(x + self.down(self._wide(x)))
        return out

    def _wide(self, x: mx.array) -> mx.array:
        if self.gate is None:
            return self._activation(self.up(x))
        found: mx.array = self._activation(self.gate(x)) * self.up(x)
        return found


class Encoder(nn.Module):
    """Token ids to hidden states."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.words = nn.Embedding(args.vocab_size, args.hidden_size)
        absolute = args.positions == "absolute"
        self.positions = (
            nn.Embedding(args.max_position_embeddings, args.hidden_size) if absolute else None
        )
        self.types = (
            nn.Embedding(args.type_vocab_size, args.hidden_size) if args.type_vocab_size else None
        )
        self.norm = nn.LayerNorm(args.hidden_size, eps=args.layer_norm_eps)
        self.layers = [Layer(args) for _ in range(args.num_hidden_layers)]
        self._first = args.first_position
        self._kinds = args.type_vocab_size
        self._slopes = _slopes(args.num_attention_heads) if args.positions == "alibi" else None
        self.separator: int | None = None

    def __call__(self, inputs: mx.array, mask: mx.array | None) -> mx.array:
        """(B, T) ids and (B, T) bool, true for real tokens, to (B, T, D)."""
        x = self.words(inputs)
        if self.positions is not None:
            last = self.positions.weight.shape[0] - 1
            # Padding may lie behind the table.
            x = x + self.positions(mx.minimum(mx.arange(inputs.shape[1]) + self._first, last))
        if self.types is not None:
            x = x + self.types(self._types(inputs))
        x = self.norm(x)
        if mask is not None:
            # A row that has no token in this forward must not divide by zero.
            mask = (mask | ~mask.any(axis=-1, keepdims=True))[:, None, None]
        mask = self._with_distances(mask, x)
        for layer in self.layers:
            x = layer(x, mask)
        out: mx.array = x
        return out

    def _with_distances(self, mask: mx.array | None, x: mx.array) -> mx.array | None:
        """What is added to scores where tokens attend less the farther away others are."""
        if self._slopes is None:
            return mask
        places = mx.arange(x.shape[1])
        falls = -self._slopes[:, None, None] * mx.abs(places[:, None] - places)
        if mask is not None:
            falls = mx.where(mask, falls[None], -mx.inf)
        return falls.astype(x.dtype)

    def _types(self, inputs: mx.array) -> mx.array:
        """0 for the first text of a pair, 1 for the second; (B, T), or (1,) without pairs."""
        if self.separator is None or self._kinds < 2:
            return mx.zeros(1, mx.int32)
        ends = (inputs == self.separator).astype(mx.int32)
        return mx.minimum(mx.cumsum(ends, axis=-1) - ends, 1)


class Model(nn.Module):
    """The encoder, with mlx-lm's protocol for models; its output is hidden states."""

    whole_sequence = True

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.args = args
        self.model_type = args.model_type
        self.model = Encoder(args)

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        """(B, T) ids to (B, T, D)."""
        mask = None if cache is None else cache[0].make_mask(inputs.shape[1])
        hidden: mx.array = self.model(inputs, mask)
        return hidden

    def tell_pairs_apart(self, separator: int | None) -> None:
        """What follows the first `separator` is a second text, as BERT was trained; None: never."""
        self.model.separator = separator if self.model_type == "bert" else None

    def make_cache(self) -> list[ArraysCache]:
        """Keeps nothing; it says where the batch's rows end."""
        return [ArraysCache(size=0)]

    @property
    def max_tokens(self) -> int:
        """Of a text: positions, and no more than one forward takes."""
        return min(self.args.max_position_embeddings - self.args.first_position, MAX_WIDTH)

    @property
    def layers(self) -> list[Layer]:
        """The encoder's layers."""
        found: list[Layer] = self.model.layers
        return found

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Our names for transformers'; heads are left out."""
        found = {}
        for name, array in weights.items():
            name = _PREFIX.sub("", name)
            if name.startswith(_UNUSED):
                continue
            for theirs, ours in _RENAMES:
                name = name.replace(theirs, ours)
            found[f"model.{name}"] = array
        return found
