"""Texts as tokens that know where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_parallm.engine.detokenizer import TextStream
from mlx_parallm.engine.sequence import FinishReason, Output, SamplingParams
from mlx_parallm.errors import InvalidRequestError


@dataclass(frozen=True, eq=False)
class Tokens:
    """A text's tokens.

    Attributes:
        ids: (n,) int32; offsets: (n, 2) int32, characters of each token.
        kept: (n,) bool; special tokens run through the model and are not kept.
    """

    text: str
    ids: np.ndarray
    offsets: np.ndarray
    kept: np.ndarray


def tokens_of(tokenizer: Any, source: str | list[int]) -> Tokens:
    """Tokens of a text, or of token ids, whose text is then made.

    Raises:
        InvalidRequestError: nothing would be kept.
    """
    if isinstance(source, str):
        text, ids, offsets = _of_text(tokenizer, source)
    else:
        text, ids, offsets = _of_ids(tokenizer, source)
    array = np.array(ids, dtype=np.int32)
    kept = ~np.isin(array, _special_ids(tokenizer))
    if not kept.any():
        raise InvalidRequestError("There is nothing to remember: the document has no tokens.")
    return Tokens(text, array, np.array(offsets, dtype=np.int32).reshape(-1, 2), kept)


def _special_ids(tokenizer: Any) -> list[int]:
    """BOS and its like, and the markers of chat templates."""
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    added = getattr(inner, "added_tokens_decoder", {})
    marked = {int(token) for token, entry in added.items() if getattr(entry, "special", False)}
    return sorted(marked | set(getattr(inner, "all_special_ids", ())))


def _of_text(tokenizer: Any, text: str) -> tuple[str, list[int], list[tuple[int, int]]]:
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    if not getattr(inner, "is_fast", False):
        ids = list(tokenizer.encode(text))
        return _of_ids(tokenizer, ids)
    encoded = inner(text, add_special_tokens=True, return_offsets_mapping=True)
    return text, list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]


def _of_ids(tokenizer: Any, ids: list[int]) -> tuple[str, list[int], list[tuple[int, int]]]:
    params = SamplingParams(max_tokens=len(ids) + 1, ignore_eos=True)
    stream = TextStream(tokenizer, params, skip_special_tokens=False)
    parts, offsets, end = [], [], 0
    for place, token in enumerate(ids):
        last = FinishReason.LENGTH if place == len(ids) - 1 else None
        parts.append(stream.push(Output(0, token_ids=[token], finish_reason=last)).text)
        start, end = end, end + len(parts[-1])
        offsets.append((start, end))
    return "".join(parts), ids, offsets
