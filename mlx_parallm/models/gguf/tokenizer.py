"""The tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, processors
from tokenizers.models import BPE

from mlx_parallm.errors import ModelLoadError
from mlx_parallm.models.gguf.pre_tokenizers import WORD_KINDS
from mlx_parallm.models.gguf.reader import GgufFile
from mlx_parallm.models.gguf.sentence_piece import merged_letters, sentence_piece
from mlx_parallm.models.gguf.unigram import unigram
from mlx_parallm.models.gguf.word_piece import original_tokens, word_piece

# Tokens that end a turn or a text, whatever the file says; llama-vocab.cpp has the same list.
_END_TOKENS = frozenset(
    "<|eot_id|> <|im_end|> <|end|> <end_of_turn> <|endoftext|> <|end_of_text|> <|eom_id|> "
    "<EOT> _<EOT> <|return|> <|call|> <turn|>".split()
)


def make_tokenizer(file: GgufFile) -> Tokenizer:
    """Byte pairs with words of a known kind, SentencePiece's two kinds, or BERT's WordPiece.

    Raises:
        ModelLoadError: another kind, by its name.
    """
    name = file.need("tokenizer.ggml.model")
    kind = _KINDS.get(name)
    if kind is None:
        raise ModelLoadError(f"{file.path}: tokenizers of the kind {name} are not supported")
    tokenizer = kind.make(file)
    _add_special_tokens(file, tokenizer)
    _add_frame(file, tokenizer, kind)
    return tokenizer


def _pre(file: GgufFile) -> str:
    return str(file.get("tokenizer.ggml.pre", "default"))


def _byte_level(file: GgufFile) -> Tokenizer:
    words = WORD_KINDS.get(_pre(file))
    if words is None:
        raise ModelLoadError(
            f"{file.path}: its tokenizer finds words in the way {_pre(file)}, which is not "
            f"supported; known are {', '.join(sorted(WORD_KINDS))}"
        )
    tokens = file.need("tokenizer.ggml.tokens")
    left_right = [tuple(pair.split(" ", 1)) for pair in file.need("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(
        BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=left_right,
            ignore_merges=words.whole_words,
        )
    )
    normalizer = words.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = words.make()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@dataclass(frozen=True)
class _Kind:
    """What a name of llama.cpp's means.

    Attributes:
        before, after: whether a text has one more token there, where the file does not say.
        names: of these tokens, in the file.
        always: whether the file has no say in it.
    """

    make: Callable[[GgufFile], Tokenizer]
    before: Callable[[GgufFile], bool] = lambda file: False
    after: bool = False
    names: tuple[str, str] = ("bos", "eos")
    always: bool = False


_KINDS = {
    "gpt2": _Kind(_byte_level, lambda file: WORD_KINDS[_pre(file)].begins),
    "llama": _Kind(sentence_piece, lambda file: True),
    "t5": _Kind(unigram, after=True),
    # What BERT calls [CLS] and [SEP].
    "gemma4": _Kind(merged_letters, lambda file: True, always=True),
    "bert": _Kind(
        word_piece, lambda file: True, after=True, names=("bos", "seperator"), always=True
    ),
}


def _add_special_tokens(file: GgufFile, tokenizer: Tokenizer) -> None:
    """Control tokens, and those that are found in a text before anything else."""
    types = file.get("tokenizer.ggml.token_type", [])
    # At once: each call builds the search for all of them anew.
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=kind == TokenType.CONTROL)
            for token, kind in zip(_tokens(file), types, strict=False)
            if kind in (TokenType.CONTROL, TokenType.USER_DEFINED) and token.strip(" ")
        ]
    )


def _add_frame(file: GgufFile, tokenizer: Tokenizer, kind: _Kind) -> None:
    """The tokens that stand before and after every text, and between two."""
    first, last = kind.names
    with_first, with_last = kind.before(file), kind.after
    if not kind.always:
        with_first = file.get("tokenizer.ggml.add_bos_token", with_first)
        with_last = file.get("tokenizer.ggml.add_eos_token", with_last)
    before = _token(file, first) if with_first else None
    after = _token(file, last) if with_last else None
    if before is None and after is None:
        return
    single = " ".join(part for part in (before, "$A", after) if part)
    apart = _token(file, "seperator") if file.get("tokenizer.ggml.add_sep_token") else None
    if kind.always:  # what ends a text is between two already
        apart = None
    parts = (before, "$A", after, apart, "$B:1", after and f"{after}:1")
    pair = " ".join(part for part in parts if part)
    ids = [(token, tokenizer.token_to_id(token)) for token in {before, after, apart} if token]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=ids
    )


def _tokens(file: GgufFile) -> list[str]:
    """The vocabulary as the tokenizer has it."""
    if file.need("tokenizer.ggml.model") == "bert":
        return original_tokens(file)
    return list(file.need("tokenizer.ggml.tokens"))


def _token(file: GgufFile, name: str) -> str | None:
    """Text of the file's bos, eos, unknown, separator or padding token."""
    number = file.get(f"tokenizer.ggml.{name}_token_id")
    tokens = _tokens(file)
    return None if number is None or number >= len(tokens) else str(tokens[number])


def tokenizer_config(file: GgufFile, context: int) -> dict[str, Any]:
    """tokenizer_config.json, with the chat template that the file has."""
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": context,
    }
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    if file.need("tokenizer.ggml.model") == "bert":
        names |= {"cls": "bos", "sep": "seperator", "mask": "mask"}
    for name, stored in names.items():
        token = _token(file, stored)
        if token is not None:
            config[f"{name}_token"] = token
    template = file.get("tokenizer.chat_template")
    return config | ({"chat_template": template} if template else {})


def end_token_ids(file: GgufFile) -> list[int]:
    """Ids of the tokens that end a generation, the file's own first."""
    named = [file.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    found = [int(i) for i in named if i is not None]
    types = file.get("tokenizer.ggml.token_type", [])
    for i, token in enumerate(file.need("tokenizer.ggml.tokens")):
        known = token in _END_TOKENS and types and types[i] != TokenType.NORMAL
        if known and i not in found:
            found.append(i)
    return list(dict.fromkeys(found))
