"""The Transcriber: all transcriptions together, a piece of work at a time. One thread."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from mlx_parallm.engine.audio.transcription import Transcription
from mlx_parallm.engine.guard.memory_guard import is_out_of_memory
from mlx_parallm.errors import OutOfMemoryError, ParallmError, SequenceError
from mlx_parallm.models.audio.whisper import Encoding

log = logging.getLogger(__name__)

MOST_ROWS = 8  # windows that are said together
_IDLE_SECONDS = 0.05  # at once where nothing decodes: so long a new request may have to wait


@dataclass(eq=False)
class Transcriber:
    """Encodes windows one after the other, and says up to MOST_ROWS together.

    After each window a transcription goes to the end of the line, so that a short sound does
    not wait for a long one.

    Attributes:
        spare: seconds that it may take between two steps, by how many rows decode; None where
            nothing decodes.
    """

    spare: Callable[[int], float | None] = lambda decoding: None
    _waiting: deque[Transcription] = field(default_factory=deque)
    _encoding: tuple[Transcription, Encoding] | None = None
    _saying: list[Transcription] = field(default_factory=list)
    _says_next: bool = False
    _token_seconds: float = math.inf  # that the last one took

    def add(self, transcription: Transcription) -> None:
        """Begin with one; it is told when it is over."""
        self._line_up(transcription)

    @property
    def has_work(self) -> bool:
        """Whether anything is left to do."""
        return bool(self._waiting or self._encoding or self._saying)

    def work(self, decoding: int) -> None:
        """Compute for as long as rows can wait, a piece at least.

        Args:
            decoding: rows of the batch that wait for their next token meanwhile.
        """
        began, seconds = time.perf_counter(), self.spare(decoding)
        seconds = _IDLE_SECONDS if seconds is None else seconds
        while self.has_work:
            self._work_once()
            # No turn begins a token that would not fit in: it takes longer than a piece.
            expected = self._token_seconds if self._saying else 0.0
            if time.perf_counter() - began + expected >= seconds:
                break

    def end_all(self, error: ParallmError) -> None:
        """Give all of them up."""
        encoding = [] if self._encoding is None else [self._encoding[0]]
        for transcription in (*self._waiting, *encoding, *self._saying):
            transcription.end(error)
        self._waiting.clear()
        self._saying.clear()
        self._encoding = None

    def _work_once(self) -> None:
        """A piece of an encoding and a token of every row, in turn."""
        self._says_next = not self._says_next
        self._saying = [row for row in self._saying if not self._is_over(row)]
        if self._says_next and self._saying:
            self._say_all()
        elif self._encoding is not None:
            self._encode(*self._encoding)
        elif self._waiting and len(self._saying) < MOST_ROWS:
            self._begin(self._waiting.popleft())
        elif self._saying:
            self._say_all()

    def _line_up(self, transcription: Transcription) -> None:
        if not self._is_over(transcription):
            self._waiting.append(transcription)

    @staticmethod
    def _is_over(transcription: Transcription) -> bool:
        if transcription.done:
            transcription.end()
        return transcription.done

    def _begin(self, transcription: Transcription) -> None:
        if self._is_over(transcription):
            return
        try:
            encoding = transcription.whisper.begin(transcription.window())
        except Exception as error:  # noqa: BLE001 - stays with whoever caused it
            _fail(transcription, error)
            return
        self._encoding = (transcription, encoding)

    def _encode(self, transcription: Transcription, encoding: Encoding) -> None:
        if self._is_over(transcription):
            self._encoding = None
            return
        try:
            if not encoding.advance():
                return
            transcription.hear(encoding.heard)
            self._saying.append(transcription)
        except Exception as error:  # noqa: BLE001 - stays with whoever caused it
            _fail(transcription, error)
        self._encoding = None

    def _say_all(self) -> None:
        began = time.perf_counter()
        self._say(self._saying)
        self._token_seconds = time.perf_counter() - began

    def _say(self, rows: list[Transcription]) -> None:
        """A token of every row; where that fails, each row alone, to see whose fault it is."""
        try:
            found = rows[0].whisper.decode([row.step for row in rows])
        except Exception as error:
            if len(rows) == 1:
                _fail(rows[0], error)
                return
            log.warning("transcriptions failed together; each is tried alone", exc_info=error)
            for row in rows:
                self._say([row])
            return
        self._take(zip(rows, found, strict=True))

    def _take(self, found: Iterable[tuple[Transcription, np.ndarray]]) -> None:
        for row, logits in found:
            try:
                if not row.take(logits):
                    continue
            except Exception as error:  # noqa: BLE001 - stays with whoever caused it
                _fail(row, error)
                continue
            self._saying = [other for other in self._saying if other is not row]
            self._line_up(row)


def _fail(transcription: Transcription, error: Exception) -> None:
    if not isinstance(error, ParallmError):
        log.warning("a transcription failed", exc_info=error)
        no_memory = is_out_of_memory(error)
        error = (
            OutOfMemoryError("There is not enough memory for this sound now.")
            if no_memory
            else SequenceError("The server failed on this sound.")
        )
    transcription.end(error)
