"""SentencePiece vocabularies: byte pairs whose order of merging is a score of the result."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gguf import TokenType
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from mlx_parallm.models.gguf.reader import GgufFile

_SPACE = "\u2581"  # how SentencePiece writes a space


def sentence_piece(file: GgufFile) -> Tokenizer:
    """The tokenizer of a file whose model is "llama" (Llama 1 and 2, Mistral, Gemma)."""
    types = file.need("tokenizer.ggml.token_type")
    tokens = _with_visible_spaces(file.need("tokenizer.ggml.tokens"), types)
    scores = file.need("tokenizer.ggml.scores")
    unknown = tokens[file.get("tokenizer.ggml.unknown_token_id", 0)]
    tokenizer = Tokenizer(
        BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=_merges(tokens, types, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = bool(file.get("tokenizer.ggml.add_space_prefix", True))
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    )
    if not prefix:  # as Gemma's; merges never cross a border between words there
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def merged_letters(file: GgufFile) -> Tokenizer:
    """The tokenizer of a file whose model is "gemma4": listed merges, also over spaces."""
    tokens = file.need("tokenizer.ggml.tokens")
    tokenizer = Tokenizer(
        BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[_pair(merge) for merge in file.need("tokenizer.ggml.merges")],
            unk_token=tokens[file.get("tokenizer.ggml.unknown_token_id", 3)],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


def _pair(merge: str) -> tuple[str, str]:
    """Both halves; only the first may begin with a space."""
    middle = merge.index(" ", 1)
    return merge[:middle], merge[middle + 1 :]


def _with_visible_spaces(tokens: Sequence[str], types: Sequence[int]) -> list[str]:
    """llama.cpp's converter wrote runs of spaces as such, in tokens that users defined."""
    return [
        _SPACE * len(token)
        if kind == TokenType.USER_DEFINED and token and not token.strip(" ")
        else token
        for token, kind in zip(tokens, types, strict=True)
    ]


def _merges(
    tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]
) -> list[tuple[str, str]]:
    """Pairs of tokens that make a token, the ones to merge first at the front."""
    ids = {token: i for i, token in enumerate(tokens)}
    found = []
    for i, (token, kind) in enumerate(zip(tokens, types, strict=True)):
        # Of the tokens that users defined, runs of one character grow in the text like others
        # do, and before them; the rest is found whole.
        run = kind == TokenType.USER_DEFINED and len(set(token)) == 1
        if kind == TokenType.NORMAL or run:
            first = (0, 0.0) if run else (1, -float(scores[i]))
            found += [
                (first, -len(left), ids[left], ids[right], left, right)
                for left, right in _halves(token, ids)
            ]
    return [(left, right) for *_, left, right in sorted(found)]


def _halves(token: str, ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    for middle in range(1, len(token)):
        left, right = token[:middle], token[middle:]
        if left in ids and right in ids:
            yield left, right
