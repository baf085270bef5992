"""A model that says its prompt again, in bytes: what a grammar lets through is seen at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlx_parallm.models.loader import LoadedModel

END, AGAIN = 0, 1
VOCAB = 2 + 256
_CONTEXT = 4096
_COPIES, _ENDS = 20.0, 10.0  # logits of the token to copy, and of the end


class CopyModel(nn.Module):
    """Behind the token AGAIN it says what stood before it, and then ends."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weight = mx.zeros((1,))

    def make_cache(self) -> list[Any]:
        """One layer, whose keys are the tokens."""
        return [KVCache()]

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        width, layer = inputs.shape[1], cache[0]
        mask = layer.make_mask(width, window_size=None, return_array=True)
        tokens = inputs.astype(mx.float32)[:, None, :, None]
        keys, _ = layer.update_and_fetch(tokens, tokens)
        if mask is None:
            mask = mx.ones((1, keys.shape[2]), dtype=mx.bool_)
        history = mx.where(mask, keys[:, :, None, :, 0], -1.0)[:, 0]  # (B, W, T)
        length = (history >= 0).sum(axis=-1)
        border = mx.argmax(history == AGAIN, axis=-1)
        place = length - 1 - border
        said = mx.take_along_axis(history, place[..., None], axis=-1)[..., 0].astype(mx.int32)
        wanted = mx.where(place >= border, END, said)
        is_wanted = mx.arange(VOCAB) == wanted[..., None]
        is_end = mx.arange(VOCAB) == END
        return mx.where(is_wanted, _COPIES, mx.where(is_end, _ENDS, 0.0))


def copy_model() -> LoadedModel:
    """The model as the loader would give it."""
    return LoadedModel(
        model=CopyModel(),
        tokenizer=_tokenizer(),
        config={},
        path="copy",
        folder=Path(),
        eos_token_ids=frozenset({END}),
        max_model_len=_CONTEXT,
        vocab_size=VOCAB,
        dtype="float32",
        num_parameters=1,
        nbytes=4,
        quantization=None,
    )


def _tokenizer() -> TokenizerWrapper:
    names = ["<|end|>", "<|again|>"]
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: place for place, name in enumerate(names)}
    vocab |= {symbol: len(names) + place for place, symbol in enumerate(symbols)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=names[END], clean_up_tokenization_spaces=False
    )
    return TokenizerWrapper(made, eos_token_ids=[END])
