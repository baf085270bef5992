"""A server with a tiny Llama and a tiny Whisper, and files of sounds for it."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import LoadedModel
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings

pytest.importorskip("mlx_audio")


class Sounds:
    """Makes files of sounds."""

    def wav(self, samples: np.ndarray, rate: int = 16_000, channels: int = 1) -> bytes:
        """16 bits; each channel has the same."""
        whole = np.repeat((samples * 32767).astype("<i2"), channels)
        out = io.BytesIO()
        with wave.open(out, "wb") as file:
            file.setnchannels(channels)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(whole.tobytes())
        return out.getvalue()

    def raw(
        self,
        data: bytes,
        *,
        rate: int = 16_000,
        channels: int = 1,
        bits: int = 16,
        kind: int = 1,
        declared: int | None = None,
    ) -> bytes:
        """A WAV that says what it likes of itself."""
        block = channels * bits // 8
        fields = (kind, channels, rate, rate * block & 0xFFFFFFFF, block & 0xFFFF, bits)
        header = b"fmt " + struct.pack("<IHHIIHH", 16, *fields)
        size = len(data) if declared is None else declared
        body = b"WAVE" + header + b"data" + struct.pack("<I", size) + data
        return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.fixture(scope="session")
def sounds() -> Sounds:
    return Sounds()


@pytest.fixture(scope="module")
def hearing(
    llama_factory: Callable[..., LoadedModel],
    helpers: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Any]:
    """A server that hears; its weights are random. Nothing is left in its engine."""
    from mlx_parallm.models.audio.loading import load_whisper
    from tests.models.audio.tiny_whisper import QUICK, make_tiny_whisper

    folder: Path = make_tiny_whisper(tmp_path_factory.mktemp("whisper") / "tiny", sizes=QUICK)
    given = f"whisper-1={folder}"

    def load() -> LoadedModel:
        loaded = llama_factory()
        loaded.whisper = load_whisper(given)
        return loaded

    engine = Engine(load, EngineConfig(max_batch_size=8))
    settings = Settings(
        served_model_name=("tiny",),
        transcription_model=given,
        max_audio_bytes=4_000_000,
        max_audio_seconds=90.0,
    )
    served = helpers.Served(create_app(settings, engine), engine, 0.5)
    served.wait_ready()
    yield served
    helpers.wait_until(lambda: served.state.sounds().queue.live == 0)
    helpers.wait_until(lambda: engine.num_live == 0 and engine.stats().rows == 0)
    served.stop()
    served.join()
