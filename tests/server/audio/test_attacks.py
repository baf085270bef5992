"""Broken files, bombs and wrong forms: each a 400 that names the field, and little memory."""

from __future__ import annotations

import base64
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.audio.tiny_whisper import melody

PATH = "/v1/audio/transcriptions"
GROWTH = 100_000_000  # bytes
_FLAC = b"fLaC\x80\x00\x00\x22"


def flac_header(rate: int, channels: int, frames: int) -> bytes:
    """A FLAC that is only a header; 16 bits."""
    packed = rate << 44 | (channels - 1) << 41 | 15 << 36 | frames
    return _FLAC + struct.pack(">HH", 4096, 4096) + bytes(6) + struct.pack(">Q", packed) + bytes(16)


BROKEN: dict[str, Callable[[Any], bytes]] = {
    "empty": lambda sounds: b"",
    "text": lambda sounds: b"hello, this is no sound at all",
    "a header alone": lambda sounds: b"RIFF\x24\x00\x00\x00WAVE",
    "no samples": lambda sounds: sounds.raw(b""),
    "too short": lambda sounds: sounds.wav(melody(0.05)),
    "cut": lambda sounds: sounds.wav(melody(2.0))[:-20_000],
    "says more than it has": lambda sounds: sounds.raw(bytes(32_000), declared=2**31),
    "no channels": lambda sounds: sounds.raw(bytes(32_000), channels=0),
    "65535 channels": lambda sounds: sounds.raw(bytes(320_000), channels=65_535),
    "nine channels": lambda sounds: sounds.raw(bytes(320_000), channels=9),
    "no rate": lambda sounds: sounds.raw(bytes(32_000), rate=0),
    "one sample a second": lambda sounds: sounds.raw(bytes(32_000), rate=1),
    "a huge rate": lambda sounds: sounds.raw(bytes(32_000), rate=2**32 - 1),
    "no bits": lambda sounds: sounds.raw(bytes(32_000), bits=0),
    "unknown coding": lambda sounds: sounds.raw(bytes(32_000), kind=0x7777),
    "not a number": lambda sounds: sounds.raw(
        np.full(16_000, np.nan, "<f4").tobytes(), bits=32, kind=3
    ),
    "infinite": lambda sounds: sounds.raw(
        np.full(16_000, np.inf, "<f4").tobytes(), bits=32, kind=3
    ),
    "too long": lambda sounds: sounds.raw(bytes(4000 * 2 * 91), rate=4_000),
    "too many bytes": lambda sounds: sounds.raw(bytes(4_100_000)),
    "a FLAC of 2^36 frames": lambda sounds: flac_header(44_100, 2, 2**36 - 1) + bytes(4000),
    "a FLAC that is cut": lambda sounds: flac_header(44_100, 2, 100_000) + bytes(4000),
    "a FLAC of a huge rate": lambda sounds: flac_header(655_350, 8, 10_000) + bytes(4000),
    "an MP3 without frames": lambda sounds: b"ID3\x04\x00\x00\x00\x00\x00\x00" + bytes(4000),
    "an MP3 of a header alone": lambda sounds: b"\xff\xfb\x90\x00" * 2,
    "Ogg": lambda sounds: b"OggS" + bytes(4000),
    "MP4": lambda sounds: b"\x00\x00\x00\x20ftypM4A " + bytes(4000),
    "WebM": lambda sounds: b"\x1a\x45\xdf\xa3" + bytes(4000),
    "an endless ID3 tag": lambda sounds: b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(4000),
}


def _resident() -> int:
    """Bytes of memory that this process, and the server in it, has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_broken_files_are_400s_that_name_the_field(hearing: Any, sounds: Any) -> None:
    hearing.http.post(PATH, files={"file": BROKEN["text"](sounds)})
    measured = Path("/proc/self/statm").exists()
    before = _resident() if measured else 0
    for name, make in BROKEN.items():
        answer = hearing.http.post(PATH, files={"file": ("a.wav", make(sounds))})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, "file"), (name, answer.text)
        assert error["type"] == "invalid_request_error"
    if measured:
        assert _resident() - before < GROWTH
    good = {"temperature": "0.05", "language": "en"}
    answer = hearing.http.post(PATH, data=good, files={"file": sounds.wav(melody(1.0))})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"language": "klingon"}, "language"),
        ({"temperature": "1.5"}, "temperature"),
        ({"temperature": "nan"}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"response_format": "docx"}, "response_format"),
        ({"response_format": "diarized_json"}, "response_format"),
        ({"response_format": "srt", "stream": "true"}, "response_format"),
        ({"stream": "perhaps"}, "stream"),
        ({"timestamp_granularities[]": "word", "response_format": "verbose_json"}, None),
        ({"timestamp_granularities[]": "segment"}, "timestamp_granularities[]"),
        ({"include[]": "logprobs"}, "include[]"),
        ({"chunking_strategy": "auto"}, "chunking_strategy"),
        ({"speaker": "me"}, "speaker"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": "a" * 20_001}, "prompt"),
        ({"seed": "1e99"}, "seed"),
    ],
)
def test_wrong_fields(hearing: Any, sounds: Any, fields: dict[str, Any], param: str | None) -> None:
    answer = hearing.http.post(PATH, data=fields, files={"file": sounds.wav(melody(1.0))})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == (param or next(iter(fields)))


def test_an_unknown_model_is_a_404(hearing: Any, sounds: Any) -> None:
    file = {"file": sounds.wav(melody(1.0))}
    answer = hearing.http.post(PATH, data={"model": "tiny"}, files=file)
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "model"


_HEAD = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n'
FORMS = {
    "no boundary at the end": _HEAD,
    "nothing": b"",
    "no name": b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--",
    "no headers": b"--x\r\nabc\r\n--x--",
    "two files": _HEAD + _HEAD + b"--x--",
    "many parts": b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 100 + b"--x--",
    "another file": _HEAD.replace(b"file", b"other") + b"--x--",
    "no UTF-8": b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n\xff\xfe\r\n--x--',
    "no file": b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x--',
}


@pytest.mark.parametrize("name", FORMS)
def test_wrong_forms(hearing: Any, name: str) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = hearing.http.post(PATH, content=FORMS[name], headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_other_bodies_and_too_large_ones(hearing: Any, sounds: Any) -> None:
    encoded = base64.b64encode(sounds.wav(melody(1.0))).decode()
    answer = hearing.post(PATH, file=encoded)
    assert answer.status_code == 400 and "multipart/form-data" in answer.text
    answer = hearing.http.post(PATH, files={"file": bytes(6_000_000)})
    assert answer.status_code == 413
