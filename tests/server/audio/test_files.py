"""Files as others write them: what is in them is what is in a plain WAV."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest

from mlx_parallm.models.audio.log_mel import WINDOW_FRAMES, log_mel
from mlx_parallm.server.audio.decoding import SoundLimits, decode
from tests.models.audio.tiny_whisper import melody

PATH = "/v1/audio/transcriptions"
SECONDS = 1.5
LIMITS = SoundLimits(max_bytes=4_000_000, max_seconds=90)
KINDS = [(8_000, 1), (16_000, 2), (22_050, 1), (44_100, 2), (48_000, 1)]


def samples_of(rate: int, channels: int) -> np.ndarray:
    """(n, channels) int16; every channel has a melody of its own."""
    found = [melody(SECONDS, seed, rate) for seed in range(channels)]
    return (np.stack(found, axis=1) * 32767).astype(np.int16)


def written(samples: np.ndarray, rate: int, container: str, codec: str, form: str) -> bytes:
    """A file as FFmpeg writes it."""
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), "s16", layout)
    frame.sample_rate = rate
    out = io.BytesIO()
    with av.open(out, "w", format=container) as file:
        stream: Any = file.add_stream(codec, rate=rate, layout=layout, format=form)
        stream.bit_rate = 64_000  # of an MP3
        resampler: Any = av.AudioResampler(
            form, layout, rate, stream.codec_context.frame_size or None
        )
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return out.getvalue()


def heard(hearing: Any, file: bytes) -> dict[str, Any]:
    """What a server says of it."""
    form = {"language": "en", "seed": "7", "temperature": "0.05", "response_format": "verbose_json"}
    answer = hearing.http.post(PATH, data=form, files={"file": file})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize(("rate", "channels"), KINDS)
def test_a_flac_says_what_the_wav_says(hearing: Any, rate: int, channels: int) -> None:
    samples = samples_of(rate, channels)
    plain = heard(hearing, written(samples, rate, "wav", "pcm_s16le", "s16"))
    packed = heard(hearing, written(samples, rate, "flac", "flac", "s16"))
    assert plain["text"] and plain["duration"] == pytest.approx(SECONDS, abs=0.001)
    assert packed == plain


@pytest.mark.parametrize(
    ("codec", "form"),
    [("pcm_s24le", "s32"), ("pcm_s32le", "s32"), ("pcm_f32le", "flt"), ("pcm_f64le", "dbl")],
)
def test_more_bits_say_the_same(hearing: Any, codec: str, form: str) -> None:
    """They hold 16 of them exactly."""
    samples = samples_of(22_050, 2)
    plain = heard(hearing, written(samples, 22_050, "wav", "pcm_s16le", "s16"))
    assert heard(hearing, written(samples, 22_050, "wav", codec, form)) == plain


@pytest.mark.parametrize(("rate", "channels"), KINDS)
def test_an_mp3_sounds_nearly_like_the_wav(hearing: Any, rate: int, channels: int) -> None:
    samples = samples_of(rate, channels)
    file = written(samples, rate, "mp3", "libmp3lame", "s16p")
    assert 0 <= heard(hearing, file)["duration"] - SECONDS < 0.5  # it has whole frames only
    assert likeness(file, written(samples, rate, "wav", "pcm_s16le", "s16")) > 0.9


def test_eight_bits_sound_nearly_like_sixteen(hearing: Any) -> None:
    samples = samples_of(16_000, 1)
    coarse = written(samples, 16_000, "wav", "pcm_u8", "u8")
    assert heard(hearing, coarse)["duration"] == pytest.approx(SECONDS, abs=0.001)
    assert likeness(coarse, written(samples, 16_000, "wav", "pcm_s16le", "s16")) > 0.9


def likeness(file: bytes, wav: bytes) -> float:
    """The correlation of both spectrograms, the file's begun wherever it fits best."""
    ours, plain = (_spectrogram(one) for one in (file, wav))
    shifted = [ours[late : late + len(plain)] for late in range(len(ours) - len(plain) + 1)]
    return max(float(np.corrcoef(part.ravel(), plain.ravel())[0, 1]) for part in shifted)


def _spectrogram(file: bytes) -> np.ndarray:
    return log_mel(decode(file, LIMITS, "file"), 80)[:-WINDOW_FRAMES]
