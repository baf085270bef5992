"""One text or many to token ids and back, for Python callers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_tokenizer

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.loader import BUNDLED, resolve


class QwenTokenizer:
    """The tokenizer of a model folder or hub id; any model's, not only Qwen's.

    Raises:
        ModelLoadError: there is no such folder or model.
    """

    def __init__(self, model_name: str = BUNDLED) -> None:
        self._tokenizer = load_tokenizer(resolve(model_name))

    def encode(
        self, text: str | Sequence[str], add_special_tokens: bool = True
    ) -> list[int] | list[list[int]]:
        """Token ids of a text, or of each text of a list."""
        if isinstance(text, str):
            return self._ids(text, add_special_tokens)
        return [self._ids(one, add_special_tokens) for one in text]

    def decode(self, tokens: Any, skip_special_tokens: bool = True) -> str:
        """The text of ids: a list, or a NumPy or MLX array of one axis."""
        ids = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def batch_encode(
        self,
        texts: Sequence[str],
        max_length: int = 2048,
        padding: bool = True,
        return_tensors: bool = False,
    ) -> dict[str, Any]:
        """Several texts, cut to max_length and padded on the right with 0.

        Args:
            return_tensors: MLX arrays, (B, T) int32, instead of lists; needs padding.

        Returns:
            input_ids and attention_mask, which is 1 for real tokens.

        Raises:
            InvalidRequestError: max_length is below 1, or arrays of ragged rows.
        """
        if max_length < 1:
            raise InvalidRequestError("max_length is below 1", param="max_length")
        if return_tensors and not padding:
            raise InvalidRequestError("arrays need padding", param="padding")
        rows = [self._ids(text, True)[:max_length] for text in texts]
        width = max((len(row) for row in rows), default=0) if padding else 0
        ids = [row + [0] * (width - len(row)) for row in rows]
        mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
        if return_tensors:
            shape = (len(rows), width)
            return {
                "input_ids": mx.array(ids, mx.int32).reshape(shape),
                "attention_mask": mx.array(mask, mx.int32).reshape(shape),
            }
        return {"input_ids": ids, "attention_mask": mask}

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        return [int(i) for i in self._tokenizer.encode(text, add_special_tokens=add_special_tokens)]


@lru_cache(maxsize=4)
def get_tokenizer(model_name: str = BUNDLED) -> QwenTokenizer:
    """The same tokenizer each time."""
    return QwenTokenizer(model_name)
