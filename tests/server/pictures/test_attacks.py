"""Pictures that are meant to harm: each is a 4xx, and the process does not grow."""

from __future__ import annotations

import io
import socket
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest

Image = pytest.importorskip("PIL.Image")

CHAT = "/v1/chat/completions"
# Names -> what a resolver that is on the attacker's side says of them.
LEADS_TO = {
    "inside.example": "10.1.2.3",
    "pictures.example": "169.254.169.254",
    "2130706433": "127.0.0.1",
    "0x7f.1": "127.0.0.1",
}
_MOST_GROWTH = 100 * 1000**2


def urls(files: Any) -> dict[str, str]:
    """An attack's name -> the URL that is sent."""
    whole = files.noisy("PNG", (40, 40))
    return {
        "metadata service": "https://169.254.169.254/latest/meta-data/",
        "loopback": "https://127.0.0.1:8000/a.png",
        "localhost": "https://localhost/a.png",
        "decimal address": "https://2130706433/a.png",
        "octal address": "https://0177.0.0.1/a.png",
        "hexadecimal address": "https://0x7f.1/a.png",
        "IPv6 loopback": "https://[::1]/a.png",
        "IPv4 in IPv6": "https://[::ffff:127.0.0.1]/a.png",
        "name that leads inside": "https://inside.example/a.png",
        "name that leads to the metadata": "https://pictures.example/a.png",
        "user part": "https://pictures.example@127.0.0.1/a.png",
        "user part behind a fragment": "https://127.0.0.1#@pictures.example/",
        "backslash": "https://127.0.0.1\\@pictures.example/",
        "another port": "https://pictures.example:6379/",
        "header in the URL": "https://pictures.example/\r\nX-Evil: 1",
        "plain http": "http://pictures.example/a.png",
        "file": "file:///etc/passwd",
        "file of a host": "file://localhost/etc/passwd",
        "path": "/etc/passwd",
        "ftp": "ftp://pictures.example/a.png",
        "gopher": "gopher://127.0.0.1:6379/_FLUSHALL",
        "empty": "",
        "long URL": "https://pictures.example/" + "a" * 100_000,
        "data without base64": "data:image/png,%89PNG",
        "wrong base64": "data:image/png;base64,iVBO*w0KGgo=",
        "base64 cut short": "data:image/png;base64,iVBORw0KGgoAAAA",
        "no base64 at all": "data:image/png;base64,",
        "no comma": "data:image/png;base64" + "A" * 10_000,
        "text as data": "data:text/html;base64,PGI+aGk8L2I+",
        "svg": files.url(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        "svg as png": files.url(b"<?xml version='1.0'?><!DOCTYPE x><svg/>"),
        "tiff": files.url(files.plain("TIFF"), "image/tiff"),
        "tiff as png": files.url(files.plain("TIFF")),
        "bmp as png": files.url(files.plain("BMP")),
        "icon as png": files.url(files.encoded(Image.new("RGB", (16, 16)), "ICO")),
        "postscript as jpeg": files.url(b"%!PS-Adobe-3.0 EPSF-3.0\n", "image/jpeg"),
        "zip before a png": files.url(_zipped() + whole),
        "pdf before a png": files.url(b"%PDF-1.7\n" + whole),
        "png magic and a script": files.url(b"\x89PNG\r\n\x1a\n<script>alert(1)</script>"),
        "truncated png": files.url(whole[:-60]),
        "truncated jpeg": files.url(files.noisy("JPEG", (64, 64))[:500], "image/jpeg"),
        "truncated webp": files.url(files.noisy("WEBP", (64, 64))[:200], "image/webp"),
        "truncated gif": files.url(files.noisy("GIF", (64, 64))[:900], "image/gif"),
        "no pixels": files.url(files.png_of(0, 0, b"")),
        "wrong checksum": files.url(whole.replace(b"IHDR", b"IHDr", 1)),
        "169 megapixels in 20 kB": files.url(_bomb(files)),
        "header of 2^31 pixels a side": files.url(files.png_of(2**31 - 1, 2**31 - 1, b"")),
        "gif of 65,535 a side": files.url(
            b"GIF89a\xff\xff\xff\xff\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02",
            "image/gif",
        ),
        "gif with a frame that is larger than it": files.url(
            b"GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\xff\xff\xff\xff\x00\x02",
            "image/gif",
        ),
        "text that unpacks to 60 MB": files.url(_text_bomb(whole)),
        "file above the limit": files.url(whole + bytes(3_000_000)),
    }


def _zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "a")
    return out.getvalue()


def _bomb(files: Any) -> bytes:
    rows = zlib.compress(bytes(13_000 // 8 + 1) * 13_000, 9)
    made: bytes = files.png_of(13_000, 13_000, rows, mode=0, depth=1)
    assert len(made) < 30_000
    return made


def _text_bomb(whole: bytes) -> bytes:
    """A compressed comment before the pixels."""
    body = b"zTXtComment\x00\x00" + zlib.compress(bytes(60_000_000), 9)
    chunk = (len(body) - 4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    return whole[:33] + chunk + whole[33:]


def _resident() -> int:
    """Bytes of memory that this process, and the server in it, has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names lead where an attacker wants them to."""
    real = socket.getaddrinfo

    def lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        return real(LEADS_TO.get(host, host), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.mark.usefixtures("resolver")
def test_each_attack_is_refused_and_nothing_is_kept(seeing: Any, files: Any) -> None:
    attacks = urls(files)
    has_memory_figures = Path("/proc/self/statm").exists()
    before = _resident() if has_memory_figures else 0
    place = "messages.0.content.0.image_url"
    for name, url in attacks.items():
        parts = [{"type": "image_url", "image_url": {"url": url}}]
        response = seeing.post(CHAT, messages=[{"role": "user", "content": parts}], max_tokens=1)
        assert response.status_code == 400, (name, response.text)
        error = response.json()["error"]
        assert error["param"] == place, (name, error)
        assert len(error["message"]) < 400, name
    if has_memory_figures:
        assert _resident() - before < _MOST_GROWTH
    # And whoever comes next is served.
    parts = [{"type": "image_url", "image_url": {"url": files.url(files.plain())}}]
    seeing.ok(CHAT, messages=[{"role": "user", "content": parts}], max_tokens=1)


def test_a_hundred_pictures_are_too_many(seeing: Any, files: Any) -> None:
    part = {"type": "image_url", "image_url": {"url": files.url(files.plain())}}
    response = seeing.post(CHAT, messages=[{"role": "user", "content": [part] * 100}])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "messages.0.content.4.image_url"
    assert "--max-images" in response.json()["error"]["message"]


@pytest.mark.parametrize("value", [1, None, {}, {"url": 3}, {"url": None}, [], ["data:,"]])
def test_what_is_no_url(seeing: Any, value: Any) -> None:
    parts = [{"type": "image_url", "image_url": value}]
    response = seeing.post(CHAT, messages=[{"role": "user", "content": parts}])
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages.0.content.0")
