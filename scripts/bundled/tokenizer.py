"""The byte-level BPE tokenizer of the bundled models: made, saved and used in training."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from .sample import (
    CHAT_TEMPLATE,
    DECISION,
    PADDING,
    THINK_END,
    THINK_START,
    TOOL_CALL_END,
    TOOL_CALL_START,
    TURN_END,
    TURN_START,
    Predicted,
    Sample,
    segments,
)

# GPT-2's pattern, but a digit stands alone, so that numbers are read digit by digit, and an
# underscore belongs to a word, so that the name of a tool can be one token.
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?[\p{L}_]+| ?\p{N}| ?[^\s\p{L}\p{N}_]+|\s+(?!\S)|\s+"
_SPECIAL = (PADDING, TURN_START, TURN_END)
# Seen as single tokens but shown in the text, so that clients can read the call.
_MARKS = (TOOL_CALL_START, TOOL_CALL_END)
# The same, added when a training goes on.
LATER_MARKS = (THINK_START, THINK_END)


def train_tokenizer(texts: Iterable[str], words: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE over `texts`; each of `words` becomes one token with a leading space and one
    without it.

    The words are repeated so often that their merges come first.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(_MARKS),
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def corpus() -> Iterator[str]:
        yield from texts
        for word in words:
            yield f" {word}" * 2000
            yield f"\n{word}" * 1000

    tokenizer.train_from_iterator(corpus(), trainer)
    add_marks(tokenizer, _MARKS)
    return tokenizer


def add_marks(tokenizer: Tokenizer, marks: Iterable[str]) -> None:
    """Append tokens that are shown in the text; those that are there stay where they are."""
    tokenizer.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in marks])


def twins(tokenizer: Tokenizer, words: Iterable[str]) -> list[tuple[int, int]]:
    """(id with a leading space, id without) of words that are one token either way."""
    found = []
    for word in words:
        spaced, bare = tokenizer.encode(f" {word}").ids, tokenizer.encode(word).ids
        if len(spaced) == len(bare) == 1:
            found.append((spaced[0], bare[0]))
    return found


def encode(tokenizer: Tokenizer, sample: Sample) -> tuple[list[int], list[float]]:
    """Token ids of a sample, and the weight of each in the loss: 0 where the model does not have
    to predict it."""
    ids: list[int] = []
    weights: list[float] = []
    for text, predicted in segments(sample):
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece.ids
        weights += _weights([begin for begin, _ in piece.offsets], predicted)
    return ids, weights


def _weights(begins: list[int], predicted: Predicted) -> list[float]:
    """Weights of a piece's tokens, by the characters with which they begin."""
    if predicted is False:
        return [0.0] * len(begins)
    if predicted is True:
        # The first token of a piece decides what kind of answer it is (a call or none, which
        # fact), and there is only one of it.
        return [DECISION, *([1.0] * (len(begins) - 1))]
    ends = list(accumulate(length for length, _ in predicted))
    shares = [*(weight for _, weight in predicted), 1.0]
    return [shares[bisect_right(ends, begin)] for begin in begins]


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": TURN_END, "pad_token": PADDING}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "bos_token": None,
        **special,
        "chat_template": CHAT_TEMPLATE,
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", special)


def sample_texts(samples: Iterable[Sample]) -> Iterator[str]:
    for sample in samples:
        yield "".join(text for text, _ in segments(sample))


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
