"""Bytes of a sound as samples: the format by its first bytes, its length before any sample."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.audio.log_mel import SAMPLE_RATE

logger = logging.getLogger(__name__)

_RATES = (4_000, 192_000)
_MOST_CHANNELS = 8
_LEAST_SECONDS = 0.1
_FINEST = 2000  # numerator of a ratio of rates, so that filters stay short
_UNKNOWN_SIZE = 0xFFFFFFFF
_CHUNK = 16_384  # frames decoded at once
_OTHER_KINDS = {b"OggS": "Ogg", b"\x1a\x45\xdf\xa3": "WebM", b"FORM": "AIFF", b"caff": "CAF"}


@dataclass(frozen=True, slots=True)
class SoundLimits:
    """Of one sound: bytes of its file, and its length, also in samples of all channels."""

    max_bytes: int
    max_seconds: float

    @property
    def max_samples(self) -> int:
        """Two channels of 48,000 a second, for all the time."""
        return int(self.max_seconds * 2 * 48_000)


@dataclass(frozen=True, slots=True)
class _Header:
    """What a file says of itself. frames: 0 where it does not say."""

    kind: str
    rate: int
    channels: int
    frames: int


def decode(data: bytes, limits: SoundLimits, param: str) -> np.ndarray:
    """A sound in one channel of 16,000 samples a second. Slow: not for the event loop.

    Args:
        param: its place in the request.

    Returns:
        (n,) float32 in -1..1.

    Raises:
        InvalidRequestError: no WAV, MP3 or FLAC, too long, too short, or damaged.
    """
    if len(data) > limits.max_bytes:
        raise InvalidRequestError(
            f"The file has more than {limits.max_bytes} bytes (--max-audio-bytes).", param=param
        )
    kind = _kind_of(data, param)
    try:
        samples = _decode(data, kind, limits, param)
    except InvalidRequestError:
        raise
    except Exception as error:  # noqa: BLE001 - decoders fail in many ways at what strangers send
        logger.info("a sound cannot be decoded: %s", error)
        raise InvalidRequestError(
            "The sound is damaged: it cannot be decoded.", param=param
        ) from None
    if len(samples) < _LEAST_SECONDS * SAMPLE_RATE:
        raise InvalidRequestError(f"The sound is shorter than {_LEAST_SECONDS:g} s.", param=param)
    return samples


def _decode(data: bytes, kind: str, limits: SoundLimits, param: str) -> np.ndarray:
    header = _header(data, kind)
    _check(header, limits, param)
    if kind == "wav":
        _check_whole(data, param)
    frames, parts = 0, []
    for part in _frames(data, header):
        frames += len(part)
        if frames * header.channels > limits.max_samples or (
            frames > limits.max_seconds * header.rate
        ):
            raise _too_long(limits, param)
        parts.append(part)
    if kind == "flac" and frames < header.frames:
        raise InvalidRequestError(
            f"The sound is cut short: it says that it has {header.frames} frames, and there are "
            f"{frames}.",
            param=param,
        )
    return _resampled(parts, header.rate, frames, param)


def _kind_of(data: bytes, param: str) -> str:
    """By the first bytes, whatever anybody says of it."""
    if data[:4] == b"RIFF" and data[8:12] == b"WAVE":
        return "wav"
    if data[:4] == b"fLaC":
        return "flac"
    # An ID3 tag, or the sync of a frame of MPEG layer 3.
    if data[:3] == b"ID3" or (data[:1] == b"\xff" and len(data) > 1 and data[1] & 0xE6 == 0xE2):
        return "mp3"
    other = "MP4" if data[4:8] == b"ftyp" else _OTHER_KINDS.get(data[:4])
    found = f"{other} is not read" if other else "this is none of them"
    raise InvalidRequestError(f"A sound is a WAV, MP3 or FLAC file; {found}.", param=param)


def _header(data: bytes, kind: str) -> _Header:
    import miniaudio

    read = {
        "wav": miniaudio.wav_get_info,
        "mp3": miniaudio.mp3_get_info,
        "flac": miniaudio.flac_get_info,
    }
    info = read[kind](data)
    return _Header(kind, info.sample_rate, info.nchannels, info.num_frames)


def _check(header: _Header, limits: SoundLimits, param: str) -> None:
    low, high = _RATES
    if not low <= header.rate <= high:
        raise InvalidRequestError(
            f"The sound has {header.rate} samples a second; {low} to {high} are supported.",
            param=param,
        )
    if not 1 <= header.channels <= _MOST_CHANNELS:
        raise InvalidRequestError(
            f"The sound has {header.channels} channels; 1 to {_MOST_CHANNELS} are supported.",
            param=param,
        )
    if header.frames > limits.max_seconds * header.rate:
        raise _too_long(limits, param)


def _check_whole(data: bytes, param: str) -> None:
    """A WAV has as many bytes of samples as it says; the decoder would take what is there."""
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if name == b"data":
            there = len(data) - at - 8
            # Who writes into a pipe does not know the length.
            if there < size != _UNKNOWN_SIZE:
                raise InvalidRequestError(
                    f"The sound is cut short: it says that it has {size} bytes of samples, and "
                    f"there are {there}.",
                    param=param,
                )
            return
        at += 8 + size + size % 2


def _too_long(limits: SoundLimits, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The sound is too long: this server takes {limits.max_seconds:g} s "
        f"(--max-audio-seconds), and {limits.max_samples} samples of all channels.",
        param=param,
    )


def _frames(data: bytes, header: _Header) -> Iterator[np.ndarray]:
    """(n,) float32 of all channels together, in the file's own rate."""
    import miniaudio

    decoder: Any = miniaudio.stream_memory(
        data, miniaudio.SampleFormat.FLOAT32, 1, header.rate, _CHUNK
    )
    try:
        for part in decoder:
            yield np.asarray(part, np.float32)
    finally:
        decoder.close()


def _resampled(parts: list[np.ndarray], rate: int, frames: int, param: str) -> np.ndarray:
    from mlx_audio.resample import resample_audio_chunks

    if not all(np.isfinite(part).all() for part in parts):
        raise InvalidRequestError("The sound has samples that are not finite.", param=param)
    ratio = Fraction(SAMPLE_RATE, rate).limit_denominator(_FINEST)
    down, up = ratio.denominator, ratio.numerator
    found: np.ndarray = resample_audio_chunks(
        parts, down, up, frames, chunk_duration_seconds=math.ceil(_CHUNK / down)
    )
    clipped: np.ndarray = np.clip(found, -1.0, 1.0)
    return clipped
