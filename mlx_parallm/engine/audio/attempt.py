"""An Attempt: one window said once, token by token, at one temperature."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from mlx_parallm.errors import NotANumberError
from mlx_parallm.models.audio.segments import Decoded
from mlx_parallm.models.audio.whisper import DecoderRow, KeysValues, Step, Whisper


class Attempt:
    """One way to say a window.

    Args:
        heard: the window, encoded.
        before: tokens of the prompt; may be none. beginning: start, language and task.
        draw: names the random numbers; equal ones give equal tokens, whatever runs beside.
    """

    def __init__(
        self,
        whisper: Whisper,
        heard: list[KeysValues],
        before: Sequence[int],
        beginning: Sequence[int],
        temperature: float,
        draw: Sequence[int],
    ) -> None:
        self._whisper = whisper
        self._row = DecoderRow(heard)
        self._given = [*before, *beginning]
        self._start = len(before)
        self._temperature = temperature
        self._random = np.random.default_rng([*draw, round(temperature * 1e6)])
        self._said: list[int] = []
        self._sum_logprob = 0.0
        self._no_speech_prob = 0.0

    @property
    def step(self) -> Step:
        """What it computes next."""
        if not self._said:
            return Step(self._row, self._given, (self._start, len(self._given) - 1))
        return Step(self._row, self._said[-1:], (0,))

    def take(self, logits: np.ndarray) -> bool:
        """Take the logits of a step and say a token; returns whether it is done.

        Raises:
            NotANumberError: the model computed something that is no number.
        """
        if not np.isfinite(logits).all():
            raise NotANumberError("The model computed something that is not a number.")
        if not self._said:
            self._hear_silence(logits[0])
        vocabulary = self._whisper.vocabulary
        scores = self._whisper.rules.log_probabilities(logits[-1], self._said)
        token = self._choose(scores)
        self._sum_logprob += float(scores[token])
        self._said.append(token)
        total = len(self._given) + len(self._said)
        longest = self._whisper.context // 2
        return (
            token == vocabulary.end or len(self._said) >= longest or total > self._whisper.context
        )

    @property
    def decoded(self) -> Decoded:
        """What it gave."""
        vocabulary = self._whisper.vocabulary
        tokens = tuple(token for token in self._said if token != vocabulary.end)
        text = vocabulary.decode(tokens).strip().encode()
        return Decoded(
            tokens,
            self._temperature,
            self._sum_logprob / (len(tokens) + 1),
            self._no_speech_prob,
            len(text) / len(zlib.compress(text)),
        )

    def _hear_silence(self, logits: np.ndarray) -> None:
        token = self._whisper.vocabulary.no_speech
        if token is not None:
            chances = np.exp(logits - logits.max())
            self._no_speech_prob = float(chances[token] / chances.sum())

    def _choose(self, scores: np.ndarray) -> int:
        if self._temperature == 0:
            return int(scores.argmax())
        chances = np.exp((scores - scores.max()) / self._temperature)
        sums = np.cumsum(chances)
        drawn = self._random.random() * sums[-1]
        return int(min(np.searchsorted(sums, drawn, side="right"), np.flatnonzero(chances)[-1]))
