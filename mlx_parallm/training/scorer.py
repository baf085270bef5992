"""The Scorer: log-probabilities of sampled tokens, by a whole forward that has a gradient."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cpu import gradients
from mlx_parallm.cpu.device import is_slow_cpu
from mlx_parallm.models.body import BodyTap
from mlx_parallm.training.micro_batch import MicroBatch

_TOLERANCE = 1e-3


class Scorer:
    """Scores with one model. On the engine's thread.

    The head is given only the hidden states of sampled tokens: of a model with few layers and
    a large vocabulary it is most of the work.

    Args:
        model: an mlx-lm model that nothing else uses.
        temperature: that its logits are divided by.
    """

    def __init__(self, model: Any, temperature: float) -> None:
        self.model = model
        self._temperature = temperature
        self._tap = BodyTap(model)
        self._selects = self._tap.available and self._can_select()

    def logprobs(self, batch: MicroBatch) -> mx.array:
        """(M,) float32, in nats."""
        logits = self._logits(mx.array(batch.inputs), batch.places).astype(mx.float32)
        if self._temperature != 1:
            logits = logits / self._temperature
        chosen = mx.take_along_axis(logits, mx.array(batch.targets)[:, None], axis=-1)
        return (chosen - _logsumexp(logits))[:, 0]

    def _logits(self, inputs: mx.array, places: np.ndarray) -> mx.array:
        """(M, V) at M places of the flattened inputs."""
        if not self._selects:
            logits: mx.array = self.model(inputs)
            return mx.flatten(logits, 0, 1)[mx.array(places.astype(np.int32))]
        self._tap.select_tokens(places)
        try:
            selected: mx.array = self.model(inputs)
        finally:
            self._tap.select_tokens(None)
        return selected[0]

    def _can_select(self) -> bool:
        """Whether the head computes every token by itself."""
        inputs, places = mx.array([[1, 2, 3], [3, 2, 1]]), np.array([1, 5])
        whole = mx.flatten(self.model(inputs), 0, 1)[mx.array(places)]
        self._selects = True
        try:
            return bool(mx.allclose(self._logits(inputs, places), whole, atol=_TOLERANCE))
        except (ValueError, TypeError):  # it wants hidden states as the body made them
            return False


def _logsumexp(x: mx.array) -> mx.array:
    """(M, 1)."""
    return gradients.logsumexp(x) if is_slow_cpu() else mx.logsumexp(x, axis=-1, keepdims=True)
