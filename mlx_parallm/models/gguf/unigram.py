"""Unigram vocabularies, as T5 and XLM-RoBERTa have them: the likeliest way to cut a text."""

from __future__ import annotations

import numpy as np
from gguf import TokenType
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import Unigram

from mlx_parallm.models.gguf.reader import GgufFile

_SPACE = "\u2581"  # how SentencePiece writes a space


def unigram(file: GgufFile) -> Tokenizer:
    """The tokenizer of a file whose model is "t5"."""
    tokens, scores = file.need("tokenizer.ggml.tokens"), file.need("tokenizer.ggml.scores")
    types = file.need("tokenizer.ggml.token_type")
    tokenizer = Tokenizer(
        Unigram(
            [(token, float(score)) for token, score in zip(tokens, scores, strict=True)],
            unk_id=int(file.get("tokenizer.ggml.unknown_token_id", 0)),
            byte_fallback=TokenType.BYTE in types,
        )
    )
    tokenizer.normalizer = normalizers.Sequence(_steps(file))
    prefix = bool(file.get("tokenizer.ggml.add_space_prefix", True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        _SPACE, "always" if prefix else "never", split=False
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(_SPACE, "always" if prefix else "never")]
    )
    return tokenizer


def _steps(file: GgufFile) -> list[normalizers.Normalizer]:
    """What SentencePiece does to a text: its table of characters, then spaces."""
    steps: list[normalizers.Normalizer] = []
    table = file.get("tokenizer.ggml.precompiled_charsmap")
    if table is not None and len(table):
        # Two spaces, as each is in the table; the library would look both up as one sign.
        steps.append(normalizers.Replace("\r\n", "\n\n"))
        steps.append(normalizers.Precompiled(np.array(table).astype(np.uint8).tobytes()))
    if file.get("tokenizer.ggml.remove_extra_whitespaces", False):
        steps += [
            normalizers.Replace(Regex(" {2,}"), " "),
            normalizers.Replace(Regex(r"\A +| +\z"), ""),
        ]
    return steps
