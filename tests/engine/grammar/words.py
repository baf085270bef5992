"""Texts as tokens of the byte tokenizer, and masks as texts."""

from __future__ import annotations

import numpy as np

from mlx_parallm.engine.grammar.masks import Masks
from tests.engine import mock

_TOKENIZER = mock.byte_tokenizer()


def tokens(text: str) -> list[int]:
    return [int(token) for token in _TOKENIZER.encode(text)]


def allowed(masks: Masks, row: int) -> set[int]:
    """Tokens that a row may say."""
    bits = np.unpackbits(masks.words[row].view(np.uint8), bitorder="little")
    return {int(token) for token in np.nonzero(bits[: mock.VOCAB])[0]}
