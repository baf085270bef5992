"""The way from requests to the Transcriber, which works between two steps of the batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from mlx_parallm.engine.audio.transcriber import Transcriber
from mlx_parallm.engine.audio.transcription import Transcription, Wish
from mlx_parallm.engine.pacing.token_budget import TokenBudget
from mlx_parallm.errors import OutOfMemoryError, ParallmError, QueueFullError, UnavailableError
from mlx_parallm.models.audio.segments import Segment
from mlx_parallm.models.audio.whisper import Whisper
from mlx_parallm.models.device_memory import total_memory

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import Engine

_SHARE = 16  # of the machine's memory, what sounds that wait may take


class TranscriptionQueue:
    """Hands sounds to the engine's thread, and lets it work on them in short turns.

    Args:
        most: requests that may be under way; one more is refused.
        max_bytes: of all their spectrograms.
    """

    def __init__(self, engine: Engine, most: int, max_bytes: int | None = None) -> None:
        self._engine = engine
        self._most = most
        self._max_bytes = max_bytes or total_memory() // _SHARE
        self._transcriber = Transcriber()
        self._lock = threading.Lock()
        self._live = self._held = 0
        self._takes_turns = False

    @property
    def live(self) -> int:
        """Requests under way."""
        return self._live

    def put(
        self,
        whisper: Whisper,
        mel: np.ndarray,
        wish: Wish,
        on_segments: Callable[[list[Segment]], None],
        on_end: Callable[[ParallmError | None], None],
    ) -> Transcription:
        """Begin with a sound; both are called on the engine's thread, on_end once.

        Raises:
            QueueFullError: too many are under way.
            OutOfMemoryError: they take too much memory.
            UnavailableError: the engine has stopped.
        """
        self._take_room(mel.nbytes)

        def on_end_of_all(error: ParallmError | None) -> None:
            self._give_room(mel.nbytes)
            on_end(error)

        found = Transcription(whisper, mel, wish, on_segments, on_end_of_all)
        try:
            self._engine.call(lambda: self._add(found))
        except ParallmError:
            self._give_room(mel.nbytes)
            raise
        return found

    def end_all(self, error: ParallmError) -> None:
        """Answer everybody who waits."""
        try:
            self._engine.call(lambda: self._transcriber.end_all(error))
        except UnavailableError:
            return  # its last turn has answered them

    def _take_room(self, nbytes: int) -> None:
        with self._lock:
            if self._live >= self._most:
                raise QueueFullError(f"{self._live} sounds are waiting already.")
            if self._live and self._held + nbytes > self._max_bytes:
                raise OutOfMemoryError("There is no memory for more sounds now.")
            self._live += 1
            self._held += nbytes

    def _give_room(self, nbytes: int) -> None:
        with self._lock:
            self._live -= 1
            self._held -= nbytes

    # The engine's thread

    def _add(self, transcription: Transcription) -> None:
        budget = self._engine.scheduler.budget
        if isinstance(budget, TokenBudget):
            self._transcriber.spare = budget.spare
        self._transcriber.add(transcription)
        if not self._takes_turns:
            self._takes_turns = True
            self._take_turn()

    def _take_turn(self) -> None:
        began = time.perf_counter()
        self._transcriber.work(len(self._engine.scheduler.decoding))
        self._engine.runner.interrupted(time.perf_counter() - began)
        self._takes_turns = self._transcriber.has_work
        if self._takes_turns:
            try:
                self._engine.call(self._take_turn)
            except UnavailableError as error:
                self._takes_turns = False
                self._transcriber.end_all(error)
