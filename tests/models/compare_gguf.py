"""A loaded model beside llama.cpp: log-probabilities of what it said, position by position."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from mlx_parallm.models.loader import LoadedModel
from tests.models import llama_cpp


def logprobs(loaded: LoadedModel, ids: list[int]) -> np.ndarray:
    """(T, V) float32."""
    cache = make_prompt_cache(loaded.model)
    logits = loaded.model(mx.array([ids]), cache=cache).astype(mx.float32)[0]
    return np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))


@dataclass(frozen=True)
class Note:
    """Where a test notes what it measured: a line of the table of scripts/gguf_table.py."""

    record: Callable[[str, object], None]
    model: str
    kind: str

    def __call__(self, positions: int, share: float, error: float) -> None:
        same = round(share * positions)
        line = (self.model, self.kind, str(positions), str(same), f"{error:.1e}")
        self.record("gguf", "|".join(line))


def assert_agrees(
    loaded: LoadedModel,
    prompt: list[int],
    said: llama_cpp.Continuation,
    within: float,
    note: Note,
) -> float:
    """Share of positions with the same likeliest token; all of the oracle's five are close."""
    share, error = agreement(loaded, prompt, said)
    note(len(said[0]), share, error)
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
