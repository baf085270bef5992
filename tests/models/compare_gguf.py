"""A loaded model beside llama.cpp: log-probabilities of what it said, position by position."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from mlx_parallm.models.loader import LoadedModel
from tests.models import llama_cpp


def logprobs(loaded: LoadedModel, ids: list[int]) -> np.ndarray:
    """(T, V) float32."""
    logits = loaded.model(mx.array([ids])).astype(mx.float32)[0]
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


def assert_agrees(
    loaded: LoadedModel, prompt: list[int], said: llama_cpp.Continuation, within: float
) -> float:
    """Share of positions with the same likeliest token; all of the oracle's five are close."""
    share, error = agreement(loaded, prompt, said)
    assert error < within
    return share


def agreement(
    loaded: LoadedModel, prompt: list[int], said: llama_cpp.Continuation
) -> tuple[float, float]:
    """Share of positions with the same likeliest token, and the largest difference of a
    log-probability of the oracle's five likeliest, in nats."""
    tokens, tops = said
    ours = logprobs(loaded, prompt + tokens)[len(prompt) - 1 : -1]
    errors = [
        abs(row[token] - value)
        for row, top in zip(ours, tops, strict=True)
        for token, value in top.items()
    ]
    return float(np.mean(ours.argmax(-1) == np.array(tokens))), float(max(errors))
