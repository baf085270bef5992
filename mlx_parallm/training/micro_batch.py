"""A MicroBatch: some answers side by side, as one forward takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_parallm.training.rollouts import Sample
from mlx_parallm.training.settings import LossKind


@dataclass(frozen=True)
class MicroBatch:
    """B answers behind their prompts; their M sampled tokens lie behind each other.

    Attributes:
        inputs: (B, T) int32, right-padded. A token's logits are computed one place before it.
        places: (M,) where, in the flattened (B, T).
        targets: (M,) the sampled tokens; logprobs: (M,) under what they were drawn from.
        advantages: (M,) of each token's answer; weights: (M,) of each token in the loss.
    """

    inputs: np.ndarray
    places: np.ndarray
    targets: np.ndarray
    logprobs: np.ndarray
    advantages: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[Sample], weights: Sequence[float]) -> MicroBatch:
        """One of these answers, all of which have tokens.

        Args:
            weights: of each token of an answer.
        """
        rows = [[*s.example.ids, *s.tokens][:-1] for s in samples]
        width = max(map(len, rows))
        inputs = np.zeros((len(rows), width), np.int32)
        for row, tokens in zip(inputs, rows, strict=True):
            row[: len(tokens)] = tokens
        counts = [len(s.tokens) for s in samples]
        firsts = [i * width + len(s.example.ids) - 1 for i, s in enumerate(samples)]
        return cls(
            inputs,
            np.concatenate([np.arange(f, f + n) for f, n in zip(firsts, counts, strict=True)]),
            np.concatenate([s.tokens for s in samples]).astype(np.int32),
            np.concatenate([s.logprobs for s in samples]).astype(np.float32),
            np.repeat([s.advantage for s in samples], counts).astype(np.float32),
            np.repeat(weights, counts).astype(np.float32),
        )


def micro_batches(
    samples: Sequence[Sample], size: int, loss: LossKind, longest: int, *, all_count: bool
) -> Iterator[MicroBatch]:
    """All of a step's answers, those of like length together.

    Args:
        longest: tokens that an answer may have.
        all_count: also answers whose advantage is 0; without a divergence from the base they
            have no gradient.
    """
    weights = token_weights([len(s.tokens) for s in samples], loss, longest)
    chosen = [i for i, s in enumerate(samples) if s.tokens and (all_count or s.advantage != 0)]
    chosen.sort(key=lambda i: len(samples[i].example.ids) + len(samples[i].tokens))
    for first in range(0, len(chosen), size):
        part = chosen[first : first + size]
        yield MicroBatch.of([samples[i] for i in part], [weights[i] for i in part])


def token_weights(lengths: Sequence[int], loss: LossKind, longest: int) -> list[float]:
    """Of one token of each answer; they make the sum over all tokens the loss's mean.

    Sources: GRPO, arXiv 2402.03300, equation 3; Dr. GRPO, arXiv 2503.20783; DAPO,
    arXiv 2503.14476, equation 8.
    """
    count = len(lengths)
    if loss == "grpo":
        return [1 / (count * max(1, length)) for length in lengths]
    whole = sum(lengths) if loss == "dapo" else count * longest
    return [1 / max(1, whole)] * count
