"""Videos that are meant to harm: each is a 4xx, and whoever comes next is served."""

from __future__ import annotations

import base64
import socket
import struct
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av")

CHAT = "/v1/chat/completions"
PLACE = "messages.0.content.0.video_url"
_MOST_GROWTH = 100 * 1000**2


def _resident() -> int:
    """Bytes of memory that this process, and the server in it, has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _patched(data: bytes, box: bytes, offset: int, value: bytes) -> bytes:
    """An MP4 with other bytes at an offset in each box of a kind."""
    made, at = bytearray(data), data.find(box)
    assert at >= 0
    while at >= 0:
        made[at + 4 + offset : at + 4 + offset + len(value)] = value
        at = data.find(box, at + 4)
    return bytes(made)


def _endless(film: bytes) -> bytes:
    """Each frame is seen for 2^30 units of time."""
    return _patched(film, b"stts", 12, struct.pack(">I", 1 << 30))


def _huge(film: bytes) -> bytes:
    """16,383 pixels a side, by the headers of VP8's key frames."""
    mark = b"\x9d\x01\x2a"
    assert mark in film
    parts = film.split(mark)
    return parts[0] + b"".join(mark + b"\xff\x3f\xff\x3f" + part[4:] for part in parts[1:])


def files(clips: Any) -> dict[str, bytes]:
    """An attack's name -> the file that is sent as MP4."""
    film = clips.file(range(0, 240, 4))
    web = clips.file(range(0, 240, 4), "webm")
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n"
    return {
        "nothing": b"",
        "text": b"this is no video",
        "a picture": clips.picture(7),
        "a moving picture": b"GIF89a" + bytes(50),
        "a playlist of local files": playlist,
        "a playlist behind the mark of an MP4": film[:8] + playlist,
        "a list of files to join": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "AVI": b"RIFF\x00\x00\x00\x00AVI LIST" + bytes(100),
        "only the mark of an MP4": film[:32],
        "only the mark of a WebM": web[:64],
        "cut in the middle": film[: len(film) // 2],
        "holes in it": film[:400] + bytes(len(film) - 800) + film[-400:],
        "headers of 16,383 pixels a side": _huge(clips.file([1] * 3, "webm", codec="libvpx")),
        "endless duration": _endless(film),
        "frames above the limit of pixels": clips.file([1] * 3, size=(1920, 1080)),
        "a codec that is not taken": clips.file([1] * 3, codec="mjpeg", pixel_format="yuvj420p"),
        "a file above the limit": film + bytes(2_000_000),
        "sound alone": _sound(),
    }


def _sound() -> bytes:
    import io

    import av
    import numpy as np

    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


def urls(clips: Any) -> dict[str, Any]:
    """An attack's name -> what is sent as the URL."""
    film = clips.file(range(0, 240, 4))
    plain = base64.b64encode(clips.picture(3)).decode()
    other = base64.b64encode(clips.picture(3, size=(56, 84))).decode()
    large = base64.b64encode(clips.picture(3, size=(800, 700))).decode()
    half = base64.b64encode(clips.picture(3, size=(700, 700))).decode()
    return {
        "empty": "",
        "path": "/etc/passwd",
        "file": "file:///etc/passwd",
        "plain http": "http://videos.example/a.mp4",
        "loopback": "https://127.0.0.1:8000/a.mp4",
        "name that leads inside": "https://inside.example/a.mp4",
        "streaming protocol": "rtsp://videos.example/a",
        "another type": clips.url(film, "video/x-msvideo"),
        "a picture's type": clips.url(clips.picture(1), "image/png"),
        "wrong base64": "data:video/mp4;base64,AAAA*AAA",
        "no frames": "data:video/jpeg;base64,",
        "an empty list": [],
        "an empty frame": f"data:video/jpeg;base64,{plain},,{plain}",
        "a film as frames": "data:video/jpeg;base64," + base64.b64encode(film).decode(),
        "41 frames": "data:video/jpeg;base64," + ",".join([plain] * 41),
        "a hundred thousand frames": "data:video/jpeg;base64," + "," * 100_000,
        "frames of two sizes": f"data:video/jpeg;base64,{plain},{other}",
        "a frame above the limit": f"data:video/jpeg;base64,{plain},{large}",
        "frames above the limit together": "data:video/jpeg;base64," + ",".join([half] * 3),
        "a frame that is a file": ["data:image/png;base64," + plain, "file:///etc/passwd"],
        "a frame of a host": ["https://videos.example/a.png"],
    }


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names lead where an attacker wants them to."""
    real = socket.getaddrinfo
    leads = {"inside.example": "10.1.2.3", "videos.example": "169.254.169.254"}

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real(leads.get(host, host), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.mark.usefixtures("resolver")
def test_each_attack_is_refused_and_nothing_is_kept(watching: Any, clips: Any) -> None:
    attacks = urls(clips) | {name: clips.url(data) for name, data in files(clips).items()}
    well = clips.chat(clips.url(clips.file(range(0, 240, 4))))
    watching.ok(CHAT, messages=well, max_tokens=1)
    has_memory_figures = Path("/proc/self/statm").exists()
    before = _resident() if has_memory_figures else 0
    for name, url in attacks.items():
        messages = clips.chat(clips.part(url))
        response = watching.post(CHAT, messages=messages, max_tokens=1)
        assert response.status_code == 400, (name, response.text)
        error = response.json()["error"]
        assert error["param"] == PLACE, (name, error)
        assert len(error["message"]) < 400, name
    if has_memory_figures:
        assert _resident() - before < _MOST_GROWTH
    watching.ok(CHAT, messages=well, max_tokens=1)


def test_too_many_videos(watching: Any, clips: Any) -> None:
    response = watching.post(CHAT, messages=clips.chat(*[clips.frames([1])] * 4), max_tokens=1)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == "messages.0.content.3.video_url"
    assert "--max-videos" in error["message"]


@pytest.mark.parametrize("value", [1, None, {}, {"url": 3}, {"url": None}, [], {"url": [["x"]]}])
def test_what_is_no_url(watching: Any, value: Any) -> None:
    parts = [{"type": "video_url", "video_url": value}]
    response = watching.post(CHAT, messages=[{"role": "user", "content": parts}])
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(PLACE)


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"video": 3}, "media_io_kwargs.video"),
        ({"video": {"num_frames": "8"}}, "media_io_kwargs.video.num_frames"),
        ({"video": {"num_frames": -2}}, "media_io_kwargs.video.num_frames"),
        ({"image": {}}, "media_io_kwargs.image"),
        (3, "media_io_kwargs"),
    ],
)
def test_what_is_no_sampling(watching: Any, clips: Any, given: Any, param: str) -> None:
    messages = clips.chat(clips.frames([1]))
    response = watching.post(CHAT, messages=messages, media_io_kwargs=given, max_tokens=1)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
