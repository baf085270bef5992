"""A target and a draft model for Python callers, on the one engine.

config = SpeculativeConfig(draft_model_path="bundled/draft", target_model_path="bundled")
result = SpeculativeDecodingEngine(config).generate("3 + 4 =", max_tokens=8)
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from typing import Unpack

from mlx_parallm.generate_settings import GenerateKeywords, shows_keywords
from mlx_parallm.utils import (
    Prompt,
    batch_generate,
    close,
    load,
    session_of,
    stream_generate,
)


@dataclass(frozen=True)
class SpeculativeConfig:
    """Which models guess and verify.

    Attributes:
        target_model_path: the model whose text this is.
        draft_model_path: a smaller one with the same tokenizer; None guesses from
            the text so far (n-gram look-up).
        max_draft_tokens: the most tokens to guess in a step; fewer, or none, are
            guessed where measured cost and acceptance say so.
        max_batch_size: sequences that compute at once.
    """

    target_model_path: str = "bundled"
    draft_model_path: str | None = None
    max_draft_tokens: int = 5
    max_batch_size: int = 32


@dataclass(frozen=True)
class SpeculativeResult:
    """A text, and what guessing did for it.

    Attributes:
        acceptance_rate: accepted over guessed tokens, of the engine so far.
    """

    text: str
    token_ids: list[int]
    finish_reason: str | None
    acceptance_rate: float


class SpeculativeDecodingEngine:
    """Generates with speculation; the text is plain decoding's, token for token.

    Raises:
        ModelLoadError: a model is missing, or the tokenizers differ.
    """

    def __init__(self, config: SpeculativeConfig) -> None:
        self.config = config
        self.model, self.tokenizer = load(
            config.target_model_path,
            max_batch_size=config.max_batch_size,
            draft_model=config.draft_model_path,
            speculative="ngram",
            num_draft_tokens=config.max_draft_tokens,
        )

    @shows_keywords
    def generate(self, prompt: Prompt, **settings: Unpack[GenerateKeywords]) -> SpeculativeResult:
        """One answer; settings as in `mlx_parallm.utils.batch_generate`."""
        pieces = list(stream_generate(self.model, self.tokenizer, prompt, **settings))
        return SpeculativeResult(
            "".join(piece.text for piece in pieces),
            [token for piece in pieces for token in piece.token_ids],
            pieces[-1].finish_reason,
            self.get_stats()["acceptance_rate"],
        )

    @shows_keywords
    def generate_batch(
        self, prompts: Items[Prompt], **settings: Unpack[GenerateKeywords]
    ) -> list[str]:
        """Many answers, all speculating in one batch."""
        return batch_generate(self.model, self.tokenizer, prompts, **settings)

    def get_stats(self) -> dict[str, float]:
        """acceptance_rate, mean_accepted_length, draft_length and counts since start."""
        stats = session_of(self.model, self.tokenizer).engine.speculative_stats()
        if stats is None:
            return {"acceptance_rate": 0.0, "mean_accepted_length": 0.0, "draft_length": 0}
        return {
            "acceptance_rate": stats.acceptance_rate,
            "mean_accepted_length": stats.mean_accepted_length,
            "draft_length": stats.current_length,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "steps": stats.steps,
        }

    def close(self) -> None:
        """Stop the engine."""
        close(self.model)
