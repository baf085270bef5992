"""Qwen3Model: mlx-lm's Qwen3 with the weights of a WeightLoader; the engine generates."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models import qwen3
from mlx_lm.models.cache import BatchKVCache
from mlx_lm.utils import load_tokenizer

from mlx_parallm.errors import InvalidRequestError, ModelLoadError
from mlx_parallm.mili.device import check_device
from mlx_parallm.mili.weight_loader import WeightLoader
from mlx_parallm.models.qwen3_config import Qwen3Config
from mlx_parallm.utils import close, generate, session_of

_LAYERS = "layers"
Cache = dict[str, Any]


class Qwen3Model:
    """A Qwen3 language model. All that it computes runs on its engine's thread.

    Args:
        config: its shape.
        weight_loader: its weights; read here where they were not loaded. The tokenizer is that
            of the loader's folder.
        device: None, or the device that MLX computes on.

    Raises:
        ModelLoadError: weights are missing, left over, or of another shape.
        UnsupportedError: another device.
    """

    def __init__(
        self, config: Qwen3Config, weight_loader: WeightLoader, device: str | None = None
    ) -> None:
        check_device(device)
        self.config = config
        self.tokenizer = load_tokenizer(weight_loader.folder)
        self.model = qwen3.Model(qwen3.ModelArgs.from_dict(config.to_dict()))
        if not weight_loader.names:
            weight_loader.load_from_safetensors()
        weights = {name: weight_loader.get_weight(name) for name in weight_loader.names}
        try:
            self.model.load_weights(list(self.model.sanitize(weights).items()))
        except ValueError as error:
            raise ModelLoadError(f"{weight_loader.model_path}: {error}") from error
        self.model.eval()
        self._engine = session_of(self.model, self.tokenizer).engine

    def forward(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        kv_cache: Cache | None = None,
    ) -> tuple[mx.array, Cache]:
        """Logits of every next token, and the cache for what comes behind these tokens.

        Args:
            input_ids: (B, T), anything that NumPy can read.
            attention_mask: 1 for real tokens: (B, T), or (B, S + T) behind S tokens. Padding
                may be on the left of the first tokens, and on the right.
            kv_cache: what the call before returned; it is carried on, and not to be used again.

        Returns:
            (B, T, V) logits, of padding without meaning, and the cache.

        Raises:
            InvalidRequestError: shapes that do not fit, an unknown token, or a mask with holes.
        """
        ids = self._checked(input_ids)
        left, right = _padding(attention_mask, ids.shape)
        if kv_cache is None:
            layers = [BatchKVCache(left) for _ in range(self.config.num_hidden_layers)]
        else:
            layers = kv_cache[_LAYERS]
            if any(left) or layers[0].left_padding.size != len(ids):
                raise InvalidRequestError(
                    "a cache goes on with the same rows, unpadded on the left", param="kv_cache"
                )
        logits = self._engine.call(lambda: self._compute(ids, layers, right)).result()
        return logits, {_LAYERS: layers}

    def generate(
        self,
        prompt: str,
        max_tokens: int = 128,
        temperature: float = 1.0,
        top_p: float = 0.95,
        top_k: int = 50,
        seed: int | None = None,
    ) -> str:
        """The text behind a prompt; settings as in `mlx_parallm.utils.generate`.

        Raises:
            InvalidRequestError: an empty prompt, one beyond the context, or a wrong setting.
        """
        return generate(
            self.model,
            self.tokenizer,
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
        )

    def close(self) -> None:
        """Stop the engine."""
        close(self.model)

    def _compute(self, ids: np.ndarray, layers: list[BatchKVCache], right: list[int]) -> mx.array:
        """On the engine's thread: one forward, computed before it is handed out."""
        for layer in layers:
            layer.prepare(right_padding=right)
        logits: mx.array = self.model(mx.array(ids), cache=layers)
        for layer in layers:
            layer.finalize()
        mx.eval(logits, [layer.state[:4] for layer in layers])
        return logits

    def _checked(self, input_ids: Any) -> np.ndarray:
        ids = np.array(input_ids)
        if ids.ndim != 2 or not ids.size or not np.issubdtype(ids.dtype, np.integer):
            raise InvalidRequestError("input_ids are whole numbers, (B, T)", param="input_ids")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise InvalidRequestError(
                f"token ids are from 0 to {self.config.vocab_size - 1}", param="input_ids"
            )
        return ids.astype(np.int32)


def _padding(attention_mask: Any, shape: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Padding of each row on the left and on the right, in the newest T columns."""
    rows, width = shape
    if attention_mask is None:
        return [0] * rows, [0] * rows
    mask = np.array(attention_mask)
    if mask.ndim != 2 or len(mask) != rows or mask.shape[1] < width:
        raise InvalidRequestError("attention_mask is (B, T)", param="attention_mask")
    mask = mask[:, -width:].astype(bool)
    left = mask.argmax(axis=1)
    right = mask[:, ::-1].argmax(axis=1)
    if not (mask.sum(axis=1) == width - left - right).all():
        raise InvalidRequestError(
            "attention_mask has a row with holes, or without tokens", param="attention_mask"
        )
    return left.tolist(), right.tolist()
