"""LSTM language models: an embedding, layers of mlx.nn.LSTM, and a head.

A checkpoint is a folder in Hugging Face's layout:

config.json
    {"model_type": "lstm", "vocab_size", "hidden_size", "num_hidden_layers",
     "embedding_size" (default: hidden_size), "tie_word_embeddings" (default: false,
     needs embedding_size == hidden_size), "max_position_embeddings" (the longest prompt
     and answer that are served), "eos_token_id"}
model*.safetensors
    model.embed_tokens.weight   (vocab_size, embedding_size)
    model.layers.N.Wx           (4 * hidden_size, embedding_size or hidden_size)
    model.layers.N.Wh           (4 * hidden_size, hidden_size)
    model.layers.N.bias         (4 * hidden_size,); gates in the order i, f, g, o
    lm_head.weight, lm_head.bias (vocab_size, hidden_size), (vocab_size,); not where tied
tokenizer.json, tokenizer_config.json
    as of any other model.

torch.nn.LSTM's names are read too: `lstm.weight_ih_lN`, `lstm.weight_hh_lN`,
`lstm.bias_ih_lN`, `lstm.bias_hh_lN` have the same gates, and their biases are added.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx import nn
from mlx_lm.models.base import BaseModelArgs
from mlx_lm.models.cache import ArraysCache

_TORCH = re.compile(r"(?:model\.)?lstm\.(weight_ih|weight_hh|bias_ih|bias_hh)_l(\d+)")
_TORCH_NAMES = {"weight_ih": "Wx", "weight_hh": "Wh", "bias_ih": "bias", "bias_hh": "bias"}


@dataclass
class ModelArgs(BaseModelArgs):
    """config.json; see above."""

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    embedding_size: int = 0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        self.embedding_size = self.embedding_size or self.hidden_size
        if self.tie_word_embeddings and self.embedding_size != self.hidden_size:
            raise ValueError("tied embeddings need embedding_size == hidden_size")


class LSTMModel(nn.Module):
    """Token ids to the last layer's hidden states."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embed_tokens = nn.Embedding(args.vocab_size, args.embedding_size)
        widths = [args.embedding_size] + [args.hidden_size] * (args.num_hidden_layers - 1)
        self.layers = [nn.LSTM(width, args.hidden_size) for width in widths]

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        """(B, T) ids to (B, T, hidden_size)."""
        h: mx.array = self.embed_tokens(inputs)
        for layer, states in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            h = _run(layer, h, states)
        return h


class Model(nn.Module):
    """The language model, with mlx-lm's protocol for models."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.args = args
        self.model_type = args.model_type
        self.model = LSTMModel(args)
        if not args.tie_word_embeddings:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size)

    def __call__(self, inputs: mx.array, cache: Any = None) -> mx.array:
        """(B, T) ids to (B, T, vocab_size) logits."""
        h = self.model(inputs, cache)
        head = self.model.embed_tokens.as_linear if self.args.tie_word_embeddings else self.lm_head
        logits: mx.array = head(h)
        return logits

    def make_cache(self) -> list[ArraysCache]:
        """A hidden and a cell state for each layer."""
        return [ArraysCache(size=2) for _ in self.layers]

    @property
    def layers(self) -> list[nn.LSTM]:
        """The recurrent layers."""
        found: list[nn.LSTM] = self.model.layers
        return found

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Our names for torch's; a head without a bias gets zeros."""
        found: dict[str, mx.array] = {}
        for name, array in weights.items():
            match = _TORCH.fullmatch(name)
            if match is not None:
                name = f"model.layers.{match[2]}.{_TORCH_NAMES[match[1]]}"
            found[name] = found[name] + array if name in found else array
        if self.args.tie_word_embeddings:
            return {name: a for name, a in found.items() if not name.startswith("lm_head.")}
        if "lm_head.bias" not in found:
            found["lm_head.bias"] = mx.zeros(self.args.vocab_size)
        return found


def _run(layer: nn.LSTM, x: mx.array, states: Any) -> mx.array:
    """One layer over a span whose rows are padded on the right (see base.py).

    What follows a row's last token does not reach the tokens before it, so only the
    states that are kept have to be the right ones.
    """
    hidden, cell = (None, None) if states is None else (states[0], states[1])
    hiddens: mx.array
    cells: mx.array
    hiddens, cells = layer(x, hidden, cell)
    if states is None:
        return hiddens
    states[0] = at_end(hiddens, hidden, states.lengths)
    states[1] = at_end(cells, cell, states.lengths)
    return hiddens


def at_end(every: mx.array, before: mx.array | None, lengths: mx.array | None) -> mx.array:
    """(B, D) after each row's last token: of (B, T, D), or `before` where a row has none."""
    if lengths is None:
        return every[:, -1]
    first = mx.zeros_like(every[:, 0]) if before is None else before
    window = mx.concatenate([first[:, None], every], axis=1)
    last = mx.take_along_axis(window, lengths[:, None, None], axis=1)
    return last.squeeze(1)
