"""Whisper: a sound's encoding in pieces, and its decoder for many rows in one forward.

The modules and their weights are mlx-audio's. Its own forward decodes rows of one length only,
and computes a whole encoding at once; so the ways through the modules are here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx import nn
from mlx.utils import tree_flatten

from mlx_parallm.models.audio.token_rules import TokenRules
from mlx_parallm.models.audio.vocabulary import Vocabulary

KeysValues = tuple[mx.array, mx.array]  # (1, heads, T, dim) each
# Yields what is to be computed next, when what it yielded before is.
Pieces = Generator[mx.array, None, mx.array]

_PIECE = 1 << 27  # operations that take a CPU about five milliseconds


@dataclass(eq=False, slots=True)
class Encoding:
    """What the decoder hears of a window, on its way.

    Attributes:
        heard: K and V of each decoder layer's cross-attention.
    """

    heard: list[KeysValues]
    _pieces: Generator[mx.array, None, None]

    def advance(self) -> bool:
        """Compute a piece; returns whether all is there."""
        piece = next(self._pieces, None)
        if piece is not None:
            mx.eval(piece)
        return piece is None


@dataclass(eq=False, slots=True)
class DecoderRow:
    """One transcript on its way: what it hears, and K and V of what it has said."""

    heard: list[KeysValues]
    said: list[KeysValues] = field(default_factory=list)
    length: int = 0


@dataclass(eq=False, slots=True)
class Step:
    """What a row computes in a forward.

    Attributes:
        tokens: that follow what the row has said.
        wanted: places among them whose logits somebody wants.
    """

    row: DecoderRow
    tokens: Sequence[int]
    wanted: Sequence[int]


class Whisper:
    """A loaded Whisper. All of it is for the engine's thread, but for its attributes.

    Args:
        name: as requests name it. path: as it was given.
        model: mlx-audio's, with weights of the type that computes.

    Attributes:
        mels: bands of the spectrograms that it hears.
        context: tokens that a transcript and what is before it may have.
        precision: seconds from timestamp to timestamp.
    """

    def __init__(self, name: str, path: str, model: Any, vocabulary: Vocabulary) -> None:
        self.name, self.path = name, path
        self.vocabulary = vocabulary
        self.mels = int(model.dims.n_mels)
        self.context = int(model.dims.n_text_ctx)
        self.precision = 30.0 / model.dims.n_audio_ctx
        self.rules = TokenRules(vocabulary, int(model.dims.n_vocab), self.precision)
        arrays: list[mx.array] = list(dict(tree_flatten(model.parameters())).values())
        self.nbytes = sum(array.nbytes for array in arrays)
        self._encoder, self._decoder, self._dtype = model.encoder, model.decoder, model.dtype
        self._frames = int(model.dims.n_audio_ctx)
        self._rows = self._frames
        if mx.default_device().type == mx.DeviceType.cpu:
            width = int(model.dims.n_audio_state)
            self._rows = max(8, _PIECE // (20 * width**2 + 4 * width * self._frames))

    def begin(self, mel: np.ndarray) -> Encoding:
        """The encoding of a window; nothing is computed yet.

        Args:
            mel: (3000, mels).
        """
        heard: list[KeysValues] = []
        return Encoding(heard, self._encode(mel, heard))

    def _encode(self, mel: np.ndarray, heard: list[KeysValues]) -> Generator[mx.array, None, None]:
        encoder = self._encoder
        x = mx.array(mel)[None].astype(self._dtype)
        x = yield from self._convolve(encoder.conv1, x, 1)
        x = yield from self._convolve(encoder.conv2, x, 2)
        x = x + encoder._positional_embedding
        for block in encoder.blocks:
            x = yield from self._encode_block(block, x)
        x = encoder.ln_post(x)
        for block in self._decoder.blocks:
            found = yield from self._keys_values(block.cross_attn, x)
            heard.append(found)

    def _convolve(self, layer: Any, x: mx.array, stride: int) -> Pieces:
        """GELU of a convolution over three neighbours, as a product of what they are."""
        padded, last = mx.pad(x, [(0, 0), (1, 1), (0, 0)]), x.shape[1] - stride + 1
        near = [padded[:, first : first + last : stride] for first in range(3)]
        matrix = layer.weight.reshape(layer.weight.shape[0], -1).T
        return self._by_rows(
            lambda part: nn.gelu(part @ matrix + layer.bias), mx.concatenate(near, axis=-1)
        )

    def _encode_block(self, block: Any, x: mx.array) -> Pieces:
        attention = block.attn
        keys, values = yield from self._keys_values(attention, block.attn_ln(x))

        def of_queries(part: mx.array) -> mx.array:
            queries = _heads(attention.query(block.attn_ln(part)), attention.n_head)
            part = part + attention.out(_attend(queries, keys, values))
            found: mx.array = part + block.mlp2(nn.gelu(block.mlp1(block.mlp_ln(part))))
            return found

        return (yield from self._by_rows(of_queries, x))

    def _keys_values(self, attention: Any, x: mx.array) -> Generator[mx.array, None, KeysValues]:
        keys = yield from self._by_rows(attention.key, x)
        values = yield from self._by_rows(attention.value, x)
        return _heads(keys, attention.n_head), _heads(values, attention.n_head)

    def _by_rows(self, function: Callable[[mx.array], mx.array], x: mx.array) -> Pieces:
        """function of (1, T, D), a few of T at once; each piece is computed by itself."""
        parts = []
        for first in range(0, x.shape[1], self._rows):
            parts.append(function(x[:, first : first + self._rows]))
            yield parts[-1]
        if len(parts) == 1:
            return parts[0]
        whole = mx.concatenate(parts, axis=1)
        yield whole
        return whole

    def decode(self, steps: Sequence[Step]) -> list[np.ndarray]:
        """One forward for all rows: their tokens one behind the other, attention by row.

        A row's state changes only where all went well.

        Returns:
            (len(wanted), vocabulary) float32 logits of each step.
        """
        decoder = self._decoder
        tokens = mx.array([token for step in steps for token in step.tokens])
        places = [step.row.length + place for step in steps for place in range(len(step.tokens))]
        x = decoder.token_embedding(tokens) + decoder.positional_embedding[mx.array(places)]
        x = x[None]
        said: list[list[KeysValues]] = [[] for _ in steps]
        for layer, block in enumerate(decoder.blocks):
            x = x + self._listen_to_self(block, x, steps, layer, said)
            x = x + self._listen(block, x, steps, layer)
            x = x + block.mlp2(nn.gelu(block.mlp1(block.mlp_ln(x))))
        wanted, counts = _wanted(steps)
        logits = decoder.token_embedding.as_linear(decoder.ln(x[0, mx.array(wanted)]))
        logits = logits.astype(mx.float32)
        mx.eval(logits, said)
        for step, state in zip(steps, said, strict=True):
            step.row.said = state
            step.row.length += len(step.tokens)
        return np.split(np.array(logits), np.cumsum(counts)[:-1])

    def _listen_to_self(
        self,
        block: Any,
        x: mx.array,
        steps: Sequence[Step],
        layer: int,
        said: list[list[KeysValues]],
    ) -> mx.array:
        attention, normed = block.attn, block.attn_ln(x)
        new = [
            _heads(project(normed), attention.n_head)
            for project in (attention.query, attention.key, attention.value)
        ]
        found, first = [], 0
        for step, state in zip(steps, said, strict=True):
            last = first + len(step.tokens)
            queries, keys, values = (array[:, :, first:last] for array in new)
            if step.row.said:
                old_keys, old_values = step.row.said[layer]
                keys = mx.concatenate([old_keys, keys], axis=2)
                values = mx.concatenate([old_values, values], axis=2)
            state.append((keys, values))
            mask = "causal" if last - first > 1 else None
            found.append(_attend(queries, keys, values, mask))
            first = last
        return attention.out(mx.concatenate(found, axis=1))  # type: ignore[no-any-return]

    def _listen(self, block: Any, x: mx.array, steps: Sequence[Step], layer: int) -> mx.array:
        attention = block.cross_attn
        queries = _heads(attention.query(block.cross_attn_ln(x)), attention.n_head)
        found, first = [], 0
        for step in steps:
            last = first + len(step.tokens)
            found.append(_attend(queries[:, :, first:last], *step.row.heard[layer]))
            first = last
        return attention.out(mx.concatenate(found, axis=1))  # type: ignore[no-any-return]


def _wanted(steps: Sequence[Step]) -> tuple[list[int], list[int]]:
    """Places of wanted logits in the whole forward, and how many are each step's."""
    places, first = [], 0
    for step in steps:
        places += [first + place for place in step.wanted]
        first += len(step.tokens)
    return places, [len(step.wanted) for step in steps]


def _heads(x: mx.array, heads: int) -> mx.array:
    """(1, T, D) as (1, heads, T, dim)."""
    return x.reshape(1, x.shape[1], heads, -1).transpose(0, 2, 1, 3)


def _attend(
    queries: mx.array, keys: mx.array, values: mx.array, mask: str | None = None
) -> mx.array:
    """(1, T, D)."""
    scale = queries.shape[-1] ** -0.5
    out = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    return out.transpose(0, 2, 1, 3).reshape(1, queries.shape[2], -1)
