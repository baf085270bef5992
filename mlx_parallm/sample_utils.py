"""Ways to draw tokens from logits, as functions; the engine's Sampler does the work.

Logits are (B, V), tokens (B,). A seed draws the same tokens each time; None draws anew.
"""

from __future__ import annotations

import mlx.core as mx

from mlx_parallm.engine.sampling.sampler import Sampler
from mlx_parallm.errors import InvalidRequestError


def greedy_sampling(logits: mx.array) -> mx.array:
    """The most likely tokens."""
    return Sampler.greedy_sampling(logits)


def categorical_sampling(
    logits: mx.array, temperature: float = 1.0, seed: int | None = None
) -> mx.array:
    """Tokens drawn from softmax(logits / temperature); 0 takes the likeliest.

    Raises:
        InvalidRequestError: temperature is below 0.
    """
    return _sample(logits, temperature, 0, 1.0, seed)


def top_p_sampling(
    logits: mx.array, top_p: float, temperature: float = 1.0, seed: int | None = None
) -> mx.array:
    """Tokens drawn from the fewest likeliest ones that have top_p of the probability together.

    Raises:
        InvalidRequestError: top_p is not above 0 and up to 1, or temperature is below 0.
    """
    if not 0 < top_p <= 1:
        raise InvalidRequestError(f"top_p cannot be {top_p}", param="top_p")
    return _sample(logits, temperature, 0, top_p, seed)


def top_k_sampling(
    logits: mx.array, top_k: int, temperature: float = 1.0, seed: int | None = None
) -> mx.array:
    """Tokens drawn from the top_k likeliest ones.

    Raises:
        InvalidRequestError: top_k is below 1, or temperature is below 0.
    """
    if top_k < 1:
        raise InvalidRequestError(f"top_k cannot be {top_k}", param="top_k")
    return _sample(logits, temperature, top_k, 1.0, seed)


def _sample(
    logits: mx.array, temperature: float, top_k: int, top_p: float, seed: int | None
) -> mx.array:
    if not temperature >= 0:
        raise InvalidRequestError(f"temperature cannot be {temperature}", param="temperature")
    return Sampler.top_k_top_p_sampling(logits, temperature, top_k, top_p, seed)
