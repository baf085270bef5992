"""What Whisper may say next: rules on the logits of one row, in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlx_parallm.models.audio.vocabulary import Vocabulary

_FIRST_TIMESTAMP_WITHIN = 1.0  # seconds: a window's first segment begins there


class TokenRules:
    """Whisper's rules: timestamps in pairs and in order, no notes about sounds, no blank answer.

    Source: SuppressBlank, SuppressTokens and ApplyTimestampRules of openai/whisper.

    Args:
        size: of the logits.
        precision: seconds from timestamp to timestamp.
    """

    def __init__(self, vocabulary: Vocabulary, size: int, precision: float) -> None:
        self._vocabulary = vocabulary
        never = [*vocabulary.never, vocabulary.no_timestamps]
        self._never = np.array([token for token in never if token < size])
        self._blank = np.array(vocabulary.blank)
        within = round(_FIRST_TIMESTAMP_WITHIN / precision)
        self._last_first = vocabulary.first_timestamp + within

    def log_probabilities(self, logits: np.ndarray, said: Sequence[int]) -> np.ndarray:
        """(size,) float32 of the next token; what may not be said has -inf.

        Args:
            logits: (size,).
            said: tokens of the transcript so far, in this window.
        """
        allowed = logits.copy()
        allowed[self._never] = -np.inf
        if not said:
            allowed[self._blank] = -np.inf
        self._keep_timestamps_right(allowed, said)
        self._prefer_timestamps(allowed)
        return allowed - _log_sum(allowed)

    def _keep_timestamps_right(self, allowed: np.ndarray, said: Sequence[int]) -> None:
        first, end = self._vocabulary.first_timestamp, self._vocabulary.end
        last_was = bool(said) and said[-1] >= first
        before_was = len(said) < 2 or said[-2] >= first
        if last_was and before_was:
            allowed[first:] = -np.inf
        elif last_was:
            allowed[:end] = -np.inf
        if stamps := [token for token in said if token >= first]:
            # They never go back, and a segment has a length.
            ends_segment = last_was and not before_was
            allowed[first : stamps[-1] + (not ends_segment)] = -np.inf
        if not said:
            allowed[:first] = -np.inf
            allowed[self._last_first + 1 :] = -np.inf

    def _prefer_timestamps(self, allowed: np.ndarray) -> None:
        """All timestamps together being likelier than any text: it is time for one."""
        first = self._vocabulary.first_timestamp
        if _log_sum(allowed[first:]) > allowed[:first].max():
            allowed[:first] = -np.inf


def _log_sum(logits: np.ndarray) -> float:
    most = logits.max()
    return float(most + np.log(np.exp(logits - most).sum())) if np.isfinite(most) else -np.inf
