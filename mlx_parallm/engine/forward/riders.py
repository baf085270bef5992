"""What is taken from forwards over prompts: log-probabilities of their tokens, pooled states."""

from __future__ import annotations

import mlx.core as mx

from mlx_parallm.engine.sampling.token_logprobs import token_logprobs, token_scores
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.step import PromptScores


class PromptRiders:
    """Collects what sequences ask of their prompts, chunk by chunk.

    Args:
        vocab_size: columns of the logits that are tokens.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._sums: dict[int, mx.array] = {}

    @property
    def arrays(self) -> list[mx.array]:
        """Everything to evaluate."""
        return list(self._sums.values())

    @staticmethod
    def wants_scores(sequence: Sequence, first: int) -> bool:
        """Whether the logits of the tokens from `first` on are wanted."""
        return (
            sequence.params.prompt_logprobs is not None
            and not sequence.output  # they went out with the first token
            and first < len(sequence.prompt) - 1
        )

    def score(self, logits: mx.array, sequence: Sequence, first: int, count: int) -> PromptScores:
        """Log-probabilities of the tokens behind a chunk's, or logits where these are asked for.

        As in vLLM both are the model's own in every logprobs_mode: no token of a prompt was drawn.

        Args:
            logits: (at least count, V) of the chunk's tokens.
            first: place of the chunk's first token in the prompt.
        """
        count = min(count, len(sequence.prompt) - 1 - first)
        targets = mx.array(sequence.prompt[first + 1 : first + 1 + count])
        top = max(1, sequence.params.prompt_logprobs or 0)
        logits = logits[:count, : self.vocab_size].astype(mx.float32)
        scores = token_scores if sequence.params.scores_logits else token_logprobs
        return PromptScores(sequence, first + 1, *scores(logits, targets, top))

    def pool(self, hidden: mx.array, sequence: Sequence, first: int) -> None:
        """Add a chunk's hidden states, (count, D), to its sequence's result."""
        hidden = hidden.astype(mx.float32)
        if sequence.pooling == "mean":
            size = len(sequence.prompt) - 1
            before = 0.0 if first == 0 else self._sums[sequence.id]
            self._sums[sequence.id] = before + hidden.sum(axis=0) / size
        elif sequence.pooling == "last" or first == 0:
            self._sums[sequence.id] = hidden[0 if sequence.pooling == "cls" else -1]

    def pooled(self, sequence: Sequence) -> mx.array | None:
        """(D,) of a pooling sequence, None of another."""
        return self._sums.get(sequence.id)

    def forget(self, sequence: Sequence) -> None:
        """Its row is gone."""
        self._sums.pop(sequence.id, None)

    def reset(self) -> None:
        """Forget every sequence."""
        self._sums.clear()
