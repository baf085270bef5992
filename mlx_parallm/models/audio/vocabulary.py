"""The Vocabulary: Whisper's special tokens, and its text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from mlx_audio.stt.models.whisper.decoding import get_suppress_tokens
from mlx_audio.stt.models.whisper.tokenizer import LANGUAGES, TO_LANGUAGE_CODE
from mlx_audio.stt.models.whisper.whisper import HFTokenizerWrapper

Task = Literal["transcribe", "translate"]
# Every special token begins so; with the two characters apart none is found in a user's text.
_SPECIAL = re.compile(r"(?<=<)(?=\|)")


class Vocabulary:
    """Ids of special tokens, and the way from text to ids and back.

    Args:
        tokenizer: transformers' WhisperTokenizer.
        multilingual: the model knows languages and tasks.
        languages: how many.

    Attributes:
        end, start, previous, no_timestamps, no_speech: ids; no_speech may be missing.
        first_timestamp: id of the second 0.00; all from there on are timestamps.
        languages: code -> id of those that the model knows; empty where it knows English only.
        never: ids that are never said. blank: nor are these at the beginning.
    """

    def __init__(self, tokenizer: Any, *, multilingual: bool, languages: int) -> None:
        self._tokenizer = tokenizer
        names = HFTokenizerWrapper(tokenizer, multilingual, languages)
        self.end = int(names.eot)
        self.start = int(names.sot)
        self.previous = int(names.sot_prev)
        self.no_timestamps = int(names.no_timestamps)
        self.no_speech: int | None = names.no_speech
        self.first_timestamp = int(names.timestamp_begin)
        self._tasks = {"transcribe": int(names.transcribe), "translate": int(names.translate)}
        self.languages: dict[str, int] = {}
        if multilingual:
            codes, ids = names.all_language_codes, names.all_language_tokens
            self.languages = dict(zip(codes, map(int, ids), strict=True))
        self.never = tuple(get_suppress_tokens(names))
        self.blank = (*names.encode(" "), self.end)

    def beginning(self, language: str, task: Task) -> list[int]:
        """What a transcript begins with: start, language and task."""
        if not self.languages:
            return [self.start]
        return [self.start, self.languages[language], self._tasks[task]]

    def encode(self, text: str) -> list[int]:
        """Ids of a user's text, in which the text of a special token is text."""
        return [
            token
            for part in _SPECIAL.split(text)
            for token in self._tokenizer.encode(part, add_special_tokens=False)
        ]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without the special ones among them."""
        words = [token for token in tokens if token < self.end]
        return str(self._tokenizer.decode(words, clean_up_tokenization_spaces=False))


def code_of(language: str) -> str | None:
    """The code of a language that is given by its code or its English name; None for ""."""
    name = language.strip().lower()
    return TO_LANGUAGE_CODE.get(name, name) or None


def name_of(language: str) -> str:
    """The English name of a language's code."""
    return str(LANGUAGES[language])
