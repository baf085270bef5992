"""Log-mel spectrograms, as Whisper was trained on: in NumPy, so that any thread may make them."""

from __future__ import annotations

from functools import cache

import numpy as np
from transformers.audio_utils import mel_filter_bank

SAMPLE_RATE = 16_000
HOP = 160  # samples from frame to frame
FRAMES_PER_SECOND = SAMPLE_RATE // HOP
WINDOW_SECONDS = 30
WINDOW_FRAMES = WINDOW_SECONDS * FRAMES_PER_SECOND  # what the encoder hears at once
_FFT = 400
_AT_ONCE = 3000  # frames, so that little memory is held beside the result
_DYNAMIC_RANGE = 8.0  # powers of ten below the loudest


def log_mel(samples: np.ndarray, mels: int) -> np.ndarray:
    """The spectrogram of a sound.

    Source: log_mel_spectrogram of openai/whisper; the loudest frame of the whole sound counts.

    Args:
        samples: (n,) float32 in -1..1, 16,000 a second, more than 200 of them.
        mels: bands.

    Returns:
        (n // 160 + WINDOW_FRAMES, mels) float32: a window of silence is behind the sound, as
        it was behind short ones that Whisper was trained on.
    """
    frames = len(samples) // HOP + WINDOW_FRAMES
    silence = np.zeros(WINDOW_FRAMES * HOP + _FFT, np.float32)
    padded = np.concatenate([samples[1 : _FFT // 2 + 1][::-1], samples, silence])
    filters = _filters(mels)
    found = np.empty((frames, mels), np.float32)
    for first in range(0, frames, _AT_ONCE):
        last = min(first + _AT_ONCE, frames)
        part = padded[first * HOP : (last - 1) * HOP + _FFT]
        windows = np.lib.stride_tricks.sliding_window_view(part, _FFT)[::HOP]
        power = np.abs(np.fft.rfft(windows * _hann(), axis=1)) ** 2
        found[first:last] = np.log10(np.maximum(power @ filters, 1e-10))
    loudest = found.max(initial=-10.0)
    mel: np.ndarray = (np.maximum(found, loudest - _DYNAMIC_RANGE) + 4.0) / 4.0
    return mel


@cache
def _filters(mels: int) -> np.ndarray:
    bank = mel_filter_bank(
        num_frequency_bins=_FFT // 2 + 1,
        num_mel_filters=mels,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return np.asarray(bank)


@cache
def _hann() -> np.ndarray:
    return np.hanning(_FFT + 1)[:-1]
