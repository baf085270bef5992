"""Log-probabilities in OpenAI's two shapes and in vLLM's for prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mlx_parallm.engine.detokenizer import token_bytes, token_text
from mlx_parallm.engine.sequence import TokenLogprob

# JSON has no -Infinity; this is what OpenAI and vLLM send for "impossible".
_LOWEST = -9999.0
# How far beyond its expected place a token's text is looked for.
_SLACK = 8
# More alternatives than any vocabulary has.
_ALL = 1 << 31


def finite(logprob: float) -> float:
    """The value, or the lowest one that is sent."""
    return logprob if math.isfinite(logprob) else _LOWEST


def shown_at_most(asked: int) -> int:
    """How many alternatives an answer shows where a request asked for so many; -1 is all."""
    return _ALL if asked < 0 else asked


class TokenNames:
    """How tokens are written in a response: their text, or "token_id:17"."""

    def __init__(self, tokenizer: Any, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def __call__(self, token_id: int) -> str:
        return f"token_id:{token_id}" if self._as_ids else token_text(self._tokenizer, token_id)

    def text(self, token_id: int) -> str:
        """The token's own text, whatever it is written as."""
        return token_text(self._tokenizer, token_id)

    def bytes(self, token_id: int) -> list[int]:
        """The token's UTF-8 bytes."""
        return token_bytes(self._tokenizer, token_id)


class Offsets:
    """Where each token begins in the choice's text.

    A token's own text may differ from what it adds: special tokens are skipped, parts of
    characters show nothing, and some tokenizers drop a first space. So each is looked for near
    where the last one ended, and one that is not found begins there.
    """

    def __init__(self, at: int = 0) -> None:
        self._at = at

    def place(self, token: str, text: str, base: int = 0) -> int:
        """The offset of `token`, whose text is in `text`, which begins at offset `base`."""
        self._at = max(self._at, base)
        begin = self._at - base
        found = text.find(token, begin, begin + len(token) + _SLACK) if token else -1
        if found < 0:
            return min(self._at, base + len(text))
        self._at = base + found + len(token)
        return base + found


def completion_logprobs(
    token_ids: Sequence[int],
    entries: Sequence[TokenLogprob | None],
    names: TokenNames,
    offsets: Sequence[int],
) -> dict[str, Any]:
    """The `logprobs` of one choice of /v1/completions, or of one of its chunks.

    Args:
        token_ids: (T,) the tokens.
        entries: (T,) theirs; None for a first prompt token. All of their alternatives are
            shown, the token itself among them.
        offsets: (T,) where each begins in the text.
    """
    return {
        "tokens": [names(token_id) for token_id in token_ids],
        "token_logprobs": [None if entry is None else finite(entry.logprob) for entry in entries],
        "top_logprobs": [
            None if entry is None else _top_by_name(entry, names) for entry in entries
        ],
        "text_offset": list(offsets),
    }


def _top_by_name(entry: TokenLogprob, names: TokenNames) -> dict[str, float]:
    by_name: dict[str, float] = {}
    for token_id, logprob in [*entry.top, (entry.token_id, entry.logprob)]:
        # Two tokens can look the same; the likelier one comes first and stays.
        by_name.setdefault(names(token_id), finite(logprob))
    return by_name


def chat_logprobs(
    entries: Sequence[TokenLogprob], names: TokenNames, top: int, named: bool = False
) -> list[dict[str, Any]]:
    """The `content` of a chat choice's logprobs, one object a token.

    Args:
        top: alternatives that are shown.
        named: the request named them: all are shown, behind the token itself.
    """
    return [
        {
            **_one(entry.token_id, entry.logprob, names),
            "top_logprobs": [
                _one(token_id, value, names)
                for token_id, value in (_with_itself(entry) if named else entry.top[:top])
            ],
        }
        for entry in entries
    ]


def _with_itself(entry: TokenLogprob) -> list[tuple[int, float]]:
    others = [(token_id, value) for token_id, value in entry.top if token_id != entry.token_id]
    return [(entry.token_id, entry.logprob), *others]


def _one(token_id: int, logprob: float, names: TokenNames) -> dict[str, Any]:
    return {
        "token": names(token_id),
        "logprob": finite(logprob),
        "bytes": names.bytes(token_id),
    }


def prompt_logprobs(
    entries: Sequence[TokenLogprob | None], names: TokenNames, top: int
) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: per token the alternatives by id, None for the first.

    The rank of a token below the alternatives is not known: null.
    """
    return [None if entry is None else _ranked(entry, names, top) for entry in entries]


def _ranked(entry: TokenLogprob, names: TokenNames, top: int) -> dict[str, Any]:
    ranked: dict[str, Any] = {}
    candidates = [*enumerate(entry.top[:top], start=1), (None, (entry.token_id, entry.logprob))]
    for rank, (token_id, logprob) in candidates:
        ranked.setdefault(
            str(token_id),
            {
                "logprob": finite(logprob),
                "rank": rank,
                "decoded_token": names.text(token_id),
            },
        )
    return ranked
