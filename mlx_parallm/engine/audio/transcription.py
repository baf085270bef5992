"""A Transcription: one sound on its way to text, window by window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from mlx_parallm.engine.audio.attempt import Attempt
from mlx_parallm.errors import ParallmError
from mlx_parallm.models.audio.log_mel import WINDOW_FRAMES
from mlx_parallm.models.audio.segments import Decoded, Segment, segments_of
from mlx_parallm.models.audio.vocabulary import Task
from mlx_parallm.models.audio.whisper import DecoderRow, KeysValues, Step, Whisper

# Source: the defaults of openai/whisper.
RISING = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_MOST_REPETITIVE = 2.4
_LEAST_LOGPROB = -1.0
_SILENCE = 0.6
_FORGET_ABOVE = 0.5  # temperature, above which a text is no context for the next window


@dataclass(frozen=True, slots=True)
class Wish:
    """How a sound is to be transcribed.

    Attributes:
        language: its code; None: the model says.
        prompt: ids of a text that comes before the first window's.
        temperatures: tried one after the other until a window's text is good enough.
    """

    task: Task = "transcribe"
    language: str | None = None
    prompt: Sequence[int] = ()
    temperatures: Sequence[float] = RISING
    seed: int = 0


@dataclass(eq=False)
class Transcription:
    """The state of one sound. On the engine's thread, but for `cancel`.

    Args:
        mel: of the whole sound, as log_mel makes it.
        on_segments: told of each window's segments. on_end: told once, with the error if any.

    Attributes:
        language: as wished or heard, once it is known.
    """

    whisper: Whisper
    mel: np.ndarray
    wish: Wish
    on_segments: Callable[[list[Segment]], None]
    on_end: Callable[[ParallmError | None], None]
    language: str | None = None
    cancelled: bool = False
    _seek: int = 0
    _frames: int = 0
    _ended: bool = False
    _tokens: list[int] = field(default_factory=list)
    _forgotten: int = 0
    _heard: list[KeysValues] = field(default_factory=list)
    _attempt: Attempt | None = None
    _tried: int = 0

    def __post_init__(self) -> None:
        self._frames = len(self.mel) - WINDOW_FRAMES
        self._tokens = list(self.wish.prompt)
        self.language = self.wish.language
        if self.language is None and not self.whisper.vocabulary.languages:
            self.language = "en"

    @property
    def done(self) -> bool:
        """Whether nothing is left to be computed."""
        return self._ended or self.cancelled or self._seek >= self._frames

    def cancel(self) -> None:
        """Nobody waits for it any more. Any thread."""
        self.cancelled = True

    def end(self, error: ParallmError | None = None) -> None:
        """Tell that it is over, once."""
        if not self._ended:
            self._ended = True
            self.on_end(error)

    def window(self) -> np.ndarray:
        """What is heard next: (3000, mels)."""
        return self.mel[self._seek : self._seek + WINDOW_FRAMES]

    def hear(self, heard: list[KeysValues]) -> None:
        """The window is encoded: begin to say it."""
        self._heard, self._tried = heard, 0
        if self.language is not None:
            self._begin_attempt()

    @property
    def step(self) -> Step:
        """What its row computes next."""
        if self._attempt is None:  # the language is asked for
            return Step(DecoderRow(self._heard), (self.whisper.vocabulary.start,), (0,))
        return self._attempt.step

    def take(self, logits: np.ndarray) -> bool:
        """Take the logits of its step; returns whether the window is done.

        Raises:
            NotANumberError: the model computed something that is no number.
        """
        if self._attempt is None:
            self._take_language(logits[0])
            return False
        if not self._attempt.take(logits):
            return False
        decoded, self._tried = self._attempt.decoded, self._tried + 1
        if self._tried < len(self.wish.temperatures) and _is_doubtful(decoded):
            self._begin_attempt()
            return False
        self._attempt, self._heard = None, []
        self._finish_window(decoded)
        return True

    def _take_language(self, logits: np.ndarray) -> None:
        languages = self.whisper.vocabulary.languages
        self.language = max(languages, key=lambda code: logits[languages[code]])
        self._begin_attempt()

    def _begin_attempt(self) -> None:
        assert self.language is not None
        vocabulary = self.whisper.vocabulary
        before = self._tokens[self._forgotten :][-(self.whisper.context // 2 - 1) :]
        self._attempt = Attempt(
            self.whisper,
            self._heard,
            [vocabulary.previous, *before] if before else [],
            vocabulary.beginning(self.language, self.wish.task),
            self.wish.temperatures[self._tried],
            (self.wish.seed, self._seek),
        )

    def _finish_window(self, decoded: Decoded) -> None:
        frames = min(WINDOW_FRAMES, self._frames - self._seek)
        if _is_silent(decoded):
            self._seek += frames
            return
        segments, self._seek = segments_of(
            decoded, self.whisper.vocabulary, self.whisper.precision, self._seek, frames
        )
        self._tokens += [token for segment in segments for token in segment.tokens]
        if decoded.temperature > _FORGET_ABOVE:
            self._forgotten = len(self._tokens)
        self.on_segments(segments)


def _is_silent(decoded: Decoded) -> bool:
    return decoded.no_speech_prob > _SILENCE and decoded.avg_logprob <= _LEAST_LOGPROB


def _is_doubtful(decoded: Decoded) -> bool:
    """Whether another temperature may do better."""
    is_bad = decoded.compression_ratio > _MOST_REPETITIVE or decoded.avg_logprob < _LEAST_LOGPROB
    return is_bad and not _is_silent(decoded)
