"""A model without weights and a tokenizer without files, for tests of the engine.

MockModel's logits are an exact function of a row's whole history, read back through
the KV cache and its masks: a token that leaks from another row, is masked wrongly or
lies at a wrong position changes the next token, and `expected` says what is right.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mlx_parallm.models.loader import LoadedModel

EOS, USER, ASSISTANT = 0, 1, 2
FIRST_BYTE = 3
VOCAB = FIRST_BYTE + 256
POISON = 200
CONTEXT = 512
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|assistant|>{% else %}<|user|>"
    "{% endif %}{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _weight(position: int) -> int:
    return position % 7 + 1


def expected(prompt: list[int], count: int) -> list[int]:
    """The greedy tokens that MockModel gives for a prompt alone."""
    tokens = list(prompt)
    total = sum((token + 1) * _weight(p) for p, token in enumerate(tokens))
    for _ in range(count):
        tokens.append(total % VOCAB)
        total += (tokens[-1] + 1) * _weight(len(tokens) - 1)
    return tokens[len(prompt) :]


class MockModel(nn.Module):
    """Says (sum of (token + 1) * weight(position) over the history) modulo VOCAB.

    Args:
        poison: a token whose appearance in an input raises.
        delay_s: what a forward takes at least.
    """

    def __init__(self, poison: int | None = None, delay_s: float = 0.0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.weight = mx.zeros((1,))
        self.poison = poison
        self.delay_s = delay_s
        self.forwards: list[tuple[int, int]] = []  # (rows, width) of each

    def make_cache(self) -> list[Any]:
        return [KVCache()]

    def __call__(self, inputs: mx.array, cache: list[Any]) -> mx.array:
        rows, width = inputs.shape
        self.forwards.append((rows, width))
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.poison is not None and (inputs == self.poison).any().item():
            raise RuntimeError("the model choked on a token")
        layer = cache[0]
        first = layer.offset
        offsets = first[:, None] if isinstance(first, mx.array) else mx.array([[first]])
        positions = offsets + mx.arange(width)[None]
        terms = ((inputs + 1) * (positions % 7 + 1)).astype(mx.float32)[:, None, :, None]
        mask = layer.make_mask(width, window_size=None, return_array=True)
        keys, _ = layer.update_and_fetch(terms, terms)
        if mask is None:
            mask = mx.ones((1, keys.shape[2]), dtype=mx.bool_)
        history = mx.where(mask, keys[:, :, None, :, 0], 0.0).sum(axis=-1)[:, 0]
        distance = (mx.arange(VOCAB)[None, None] - history.astype(mx.int32)[..., None]) % VOCAB
        return -0.5 * distance.astype(mx.float32)


def byte_tokenizer() -> TokenizerWrapper:
    """One token a byte, three special tokens and a chat template; made offline."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<|end|>", "<|user|>", "<|assistant|>"]
    vocab = {name: i for i, name in enumerate(names)}
    vocab |= {symbol: FIRST_BYTE + i for i, symbol in enumerate(symbols)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in names])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=names[EOS], clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = TEMPLATE
    return TokenizerWrapper(tokenizer, eos_token_ids=[EOS])


def loaded(model: Any, tokenizer: Any = None, *, vocab_size: int = VOCAB) -> LoadedModel:
    """Any model as the loader would give it."""
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config={},
        path="tiny",
        folder=Path(),
        eos_token_ids=frozenset({EOS}),
        max_model_len=CONTEXT,
        vocab_size=vocab_size,
        dtype="float32",
        num_parameters=1,
        nbytes=4,
        quantization=None,
    )
