"""Small vocabularies of each kind, made by the libraries that real ones were made with, as
llama.cpp's converter writes them into a file."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gguf
import sentencepiece
from gguf import TokenType
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

messages: Any = sentencepiece_model_pb2  # whose classes are made while it is imported
BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@dataclass
class Vocabulary:
    """What a file says of its tokens.

    Attributes:
        model: llama.cpp's name of the kind; ids: of special tokens, by the name in the file.
        more: other entries below tokenizer.ggml.
    """

    model: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    ids: dict[str, int]
    more: dict[str, Any] = field(default_factory=dict)

    def write(self, writer: gguf.GGUFWriter) -> None:
        """Into a file's metadata."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre("default")
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_scores(self.scores)
        for name, number in self.ids.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
        for name, value in self.more.items():
            if isinstance(value, bytes):
                writer.add_precompiled_charsmap(value)
            elif isinstance(value, list):
                writer.add_token_merges(value)
            else:
                writer.add_bool(f"tokenizer.ggml.{name}", value)


def word_piece(texts: Sequence[str], size: int = 900) -> tuple[Vocabulary, Tokenizer]:
    """BERT's kind, and the tokenizer that it was trained as."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=size, special_tokens=list(BERT_SPECIAL))
    tokenizer.train_from_iterator(texts, trainer)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    types = [TokenType.CONTROL if token in BERT_SPECIAL else TokenType.NORMAL for token in tokens]
    types[1] = TokenType.UNKNOWN
    names = ("padding", "unknown", "bos", "seperator", "mask")
    return (
        Vocabulary(
            "bert",
            [token if token in BERT_SPECIAL else _with_start(token) for token in tokens],
            [int(kind) for kind in types],
            [-1000.0] * len(tokens),
            {name: tokens.index(token) for name, token in zip(names, BERT_SPECIAL, strict=True)},
        ),
        tokenizer,
    )


def _with_start(token: str) -> str:
    return token[2:] if token.startswith("##") else f"\u2581{token}"


def sentence_piece(
    texts: Sequence[str], kind: str, size: int = 900, **options: Any
) -> tuple[Vocabulary, sentencepiece.SentencePieceProcessor]:
    """SentencePiece's "bpe" or "unigram", and its own tokenizer."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in texts for line in text.splitlines()]),
        model_writer=model,
        model_type=kind,
        vocab_size=size,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    own = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = own.get_piece_size()
    facts = messages.ModelProto.FromString(model.getvalue()).normalizer_spec
    more: dict[str, Any] = {"add_space_prefix": facts.add_dummy_prefix}
    if kind == "unigram":
        more["remove_extra_whitespaces"] = facts.remove_extra_whitespaces
        more["charsmap"] = bytes(facts.precompiled_charsmap)
    ids = {"unknown": own.unk_id(), "bos": own.bos_id(), "eos": own.eos_id()}
    return (
        Vocabulary(
            {"bpe": "llama", "unigram": "t5"}[kind],
            [own.id_to_piece(i) for i in range(count)],
            [_type(own, i) for i in range(count)],
            [own.get_score(i) for i in range(count)],
            {name: number for name, number in ids.items() if number >= 0},
            more,
        ),
        own,
    )


def merged_letters(texts: Sequence[str], size: int = 1200) -> tuple[Vocabulary, Tokenizer]:
    """Gemma 4's kind: merges of letters, spaces among them, with bytes for unknown letters; and
    the tokenizer that it was trained as, with the steps of Gemma's tokenizer.json."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    # No token of Gemma's goes over the end of a line.
    words = [
        pre_tokenizers.Split("\n", "isolated"),
        pre_tokenizers.Split("\u2581", "merged_with_next"),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    letters = [letter for text in texts[::2] for letter in text if letter not in " \n"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[*special, "\n", "\n\n"],
        initial_alphabet=sorted(set(letters)),
        limit_alphabet=400,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts[::2], trainer)
    made = json.loads(tokenizer.to_str())["model"]
    merges = [*(" ".join(pair) for pair in made["merges"]), "\n \n"]
    own = Tokenizer(
        models.BPE(
            made["vocab"],
            [(left, right) for left, right in (pair.split(" ") for pair in merges)],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    own.normalizer = normalizers.Replace(" ", "\u2581")
    own.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokens = sorted(made["vocab"], key=made["vocab"].__getitem__)
    types = [TokenType.CONTROL] * 3 + [TokenType.UNKNOWN] + [TokenType.BYTE] * 256
    types += [TokenType.NORMAL] * (len(tokens) - len(types))
    ids = {name: tokens.index(f"<{name}>") for name in ("eos", "bos")}
    more = {"merges": merges, "add_space_prefix": False, "add_bos_token": True}
    kinds = [int(kind) for kind in types]
    ids |= {"unknown": tokens.index("<unk>"), "padding": tokens.index("<pad>")}
    return Vocabulary("gemma4", tokens, kinds, [0.0] * len(tokens), ids, more), own


def _type(own: sentencepiece.SentencePieceProcessor, token: int) -> int:
    if own.is_unknown(token):
        return int(TokenType.UNKNOWN)
    if own.is_control(token):
        return int(TokenType.CONTROL)
    return int(TokenType.BYTE if own.is_byte(token) else TokenType.NORMAL)
