"""Texts as tokens that know where they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

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
    special = np.array(sorted(getattr(tokenizer, "all_special_ids", ())), dtype=np.int64)
    array = np.array(ids, dtype=np.int32)
    kept = ~np.isin(array, special)
    if not kept.any():
        raise InvalidRequestError("There is nothing to remember: the document has no tokens.")
    return Tokens(text, array, np.array(offsets, dtype=np.int32).reshape(-1, 2), kept)


def _of_text(tokenizer: Any, text: str) -> tuple[str, list[int], list[tuple[int, int]]]:
    inner = getattr(tokenizer, "_tokenizer", tokenizer)
    if not getattr(inner, "is_fast", False):
        ids = list(tokenizer.encode(text))
        return _of_ids(tokenizer, ids)
    encoded = inner(text, add_special_tokens=True, return_offsets_mapping=True)
    return text, list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]


def _of_ids(tokenizer: Any, ids: list[int]) -> tuple[str, list[int], list[tuple[int, int]]]:
    detokenizer = tokenizer.detokenizer
    detokenizer.reset()
    ends = []
    for token in ids:
        detokenizer.add_token(token)
        ends.append(len(detokenizer.text))
    detokenizer.finalize()
    text = str(detokenizer.text)
    starts = [0, *ends[:-1]]
    # Text that was held back belongs to the last token.
    ends[-1:] = [len(text)]
    return text, ids, list(zip(starts, ends, strict=True))
