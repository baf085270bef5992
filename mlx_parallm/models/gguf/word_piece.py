"""WordPiece vocabularies, as BERT has: the longest known beginning of what is left of a word."""

from __future__ import annotations

from gguf import TokenType
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece

from mlx_parallm.models.gguf.reader import GgufFile

_START = "\u2581"  # llama.cpp's converter marks how words begin; BERT marks how they go on
_INSIDE = "##"
_LONGEST_WORD = 100


def word_piece(file: GgufFile) -> Tokenizer:
    """The tokenizer of a file whose model is "bert"."""
    tokens = original_tokens(file)
    vocab = {token: i for i, token in enumerate(tokens)}
    unknown = tokens[file.get("tokenizer.ggml.unknown_token_id", 100)]
    tokenizer = Tokenizer(
        WordPiece(
            vocab,
            unk_token=unknown,
            continuing_subword_prefix=_INSIDE,
            max_input_chars_per_word=_LONGEST_WORD,
        )
    )
    cased = any(token.isalpha() and token != token.lower() for token in tokens)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=_INSIDE)
    return tokenizer


def original_tokens(file: GgufFile) -> list[str]:
    """The vocabulary with BERT's marks."""
    tokens = file.need("tokenizer.ggml.tokens")
    types = file.get("tokenizer.ggml.token_type", [TokenType.NORMAL] * len(tokens))
    return [
        token if kind != TokenType.NORMAL or _is_special(token) else _original(token)
        for token, kind in zip(tokens, types, strict=True)
    ]


def _is_special(token: str) -> bool:
    return token.startswith("[") and token.endswith("]") and len(token) > 2


def _original(token: str) -> str:
    return token[1:] if token.startswith(_START) else _INSIDE + token
