"""The Sounds of a server: from a file and a form to a transcript on its way."""

from __future__ import annotations

import asyncio
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from mlx_parallm.engine.audio.transcription import RISING, Wish
from mlx_parallm.errors import InvalidRequestError, NotFoundError, ParallmError
from mlx_parallm.models.audio.log_mel import SAMPLE_RATE, log_mel
from mlx_parallm.models.audio.vocabulary import Task, code_of, name_of
from mlx_parallm.models.audio.whisper import Whisper
from mlx_parallm.server.audio.decoding import SoundLimits, decode
from mlx_parallm.server.audio.listening import Listener
from mlx_parallm.server.audio.queue import TranscriptionQueue
from mlx_parallm.server.audio.schemas import TranscriptionRequest, TranslationRequest
from mlx_parallm.settings import Settings

if TYPE_CHECKING:
    from mlx_parallm.engine.engine import Engine

FILE = "file"  # the field of the form


class Sounds:
    """What the routes of sounds share. On the event loop.

    Attributes:
        queue: the way to the engine.
    """

    def __init__(self, engine: Engine, whisper: Whisper, settings: Settings) -> None:
        self._whisper = whisper
        self._timeout_s = settings.request_timeout
        self._limits = SoundLimits(settings.max_audio_bytes, settings.max_audio_seconds)
        # One at a time: a long sound is large while it is decoded.
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="sounds")
        self.queue = TranscriptionQueue(engine, settings.max_queue)

    def check_model(self, name: str) -> None:
        """Whether a request means this model; an empty name does.

        Raises:
            NotFoundError: it does not.
        """
        if name not in ("", self._whisper.name):
            raise NotFoundError(
                f"There is no model {name[:200]!r} for sounds; this server has "
                f"{self._whisper.name!r}.",
                param="model",
                code="model_not_found",
            )

    async def begin(self, file: bytes, body: TranslationRequest, task: Task) -> Listener:
        """Begin with a sound.

        Raises:
            InvalidRequestError: it cannot be decoded, or its language is not known.
            QueueFullError, OutOfMemoryError, UnavailableError: not now.
        """
        language = self._language(body, task)
        loop = asyncio.get_running_loop()
        seconds, mel = await loop.run_in_executor(self._executor, self._prepare, file)
        prompt = f" {body.prompt.strip()}" if body.prompt.strip() else ""
        wish = Wish(
            task,
            language,
            self._whisper.vocabulary.encode(prompt),
            RISING if body.temperature == 0 else (body.temperature,),
            secrets.randbits(53) if body.seed is None else body.seed % 2**63,
        )
        return Listener(
            lambda on_segments, on_end: self.queue.put(
                self._whisper, mel, wish, on_segments, on_end
            ),
            seconds,
            name_of,
            self._timeout_s,
        )

    def end_all(self, error: ParallmError) -> None:
        """Answer everybody who waits."""
        self.queue.end_all(error)

    def close(self) -> None:
        """Decode no more."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, file: bytes) -> tuple[float, np.ndarray]:
        """The length of a sound, and its spectrogram. Slow."""
        samples = decode(file, self._limits, FILE)
        return len(samples) / SAMPLE_RATE, log_mel(samples, self._whisper.mels)

    def _language(self, body: TranslationRequest, task: Task) -> str | None:
        known = self._whisper.vocabulary.languages
        if task == "translate" and not known:
            raise InvalidRequestError(f"{self._whisper.name!r} knows English only.", param="model")
        given = body.language if isinstance(body, TranscriptionRequest) else ""
        code = code_of(given)
        if given and code not in (known or {"en": 0}):
            raise InvalidRequestError(
                f"The language {given[:40]!r} is none of this model's: "
                f"{', '.join(sorted(known or {'en': 0}))}.",
                param="language",
            )
        return code
