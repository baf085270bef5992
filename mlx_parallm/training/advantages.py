"""Advantages: how much better an answer is than the others to the same prompt."""

from __future__ import annotations

import numpy as np

from mlx_parallm.training.settings import Scaling

_EPSILON = 1e-4  # TRL's


def advantages(rewards: np.ndarray, scaling: Scaling) -> np.ndarray:
    """(P, G) of rewards (P, G): less the group's mean, over a deviation.

    Source: GRPO, arXiv 2402.03300, section 4.1.2; without the deviation Dr. GRPO,
    arXiv 2503.20783. A group whose rewards are equal has the advantage 0.
    """
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if scaling == "none":
        return np.asarray(centred)
    axis = 1 if scaling == "group" else None
    deviation = rewards.std(axis=axis, ddof=1, keepdims=True)
    return np.asarray(centred / (deviation + _EPSILON))
