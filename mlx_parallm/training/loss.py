"""The loss of GRPO: a clipped ratio of probabilities, and the divergence from the base model.

Source: DeepSeekMath, arXiv 2402.03300, equations 3 and 4. The ratio is against the
log-probabilities that the tokens were really drawn with.
"""

from __future__ import annotations

import mlx.core as mx


def token_losses(
    new: mx.array,
    old: mx.array,
    advantages: mx.array,
    clip_range: tuple[float, float],
    base: mx.array | None = None,
    kl: float = 0.0,
) -> mx.array:
    """(M,) losses of M tokens.

    Args:
        new: (M,) log-probabilities now, in nats; they have a gradient.
        old: (M,) of the policy that sampled. base: (M,) of the base model, where kl is not 0.
        clip_range: the least and the largest ratio that counts.
    """
    ratio = mx.exp(new - old)
    clipped = mx.clip(ratio, *clip_range)
    losses = -mx.minimum(ratio * advantages, clipped * advantages)
    if base is not None:
        losses = losses + kl * divergence(new, base)
    return losses


def divergence(new: mx.array, base: mx.array) -> mx.array:
    """(M,) estimates of KL(new || base), never negative (arXiv 2402.03300, equation 4)."""
    difference = base - new
    return mx.exp(difference) - difference - 1
