"""Files of pictures, made as they are needed."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.models.loader import load_model
from mlx_parallm.server.main import create_app
from mlx_parallm.settings import Settings

Image = pytest.importorskip("PIL.Image")


def png_of(width: int, height: int, data: bytes, *, mode: int = 2, depth: int = 8) -> bytes:
    """A PNG that says what it likes of its size.

    Args:
        data: of the pixels, as they are compressed.
        mode: PNG's colour type.
    """

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, mode, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, body) for kind, body in chunks)


class Files:
    """Makes files of pictures."""

    png_of = staticmethod(png_of)

    def encoded(self, image: Any, format_: str = "PNG", **options: Any) -> bytes:
        """An image of Pillow's as a file."""
        out = io.BytesIO()
        image.save(out, format=format_, **options)
        return out.getvalue()

    def plain(self, format_: str = "PNG", size: tuple[int, int] = (6, 4)) -> bytes:
        """One colour."""
        return self.encoded(Image.new("RGB", size, (200, 30, 40)), format_)

    def noisy(self, format_: str = "PNG", size: tuple[int, int] = (6, 4)) -> bytes:
        """Pixels at random."""
        pixels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        return self.encoded(Image.fromarray(pixels), format_)

    def url(self, data: bytes, kind: str = "image/png") -> str:
        """The data: URL of a file."""
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture
def files() -> Files:
    return Files()


def served(helpers: Any, family: str, **settings: Any) -> Any:
    """A server with a tiny model of a family, whose weights are random; or with one of a path."""
    pytest.importorskip("mlx_vlm")
    from tests.models.vision.tiny_vision import folder_of

    path = family if "/" in family else str(folder_of(family))
    config = EngineConfig(max_batch_size=8, kv_cache_memory=64 << 20)
    engine = Engine(lambda: load_model(path), config)
    app = create_app(Settings(served_model_name=("tiny",), **settings), engine)
    server = helpers.Served(app, engine, 0.5)
    server.wait_ready()
    return server


@pytest.fixture(scope="session")
def seeing(helpers: Any) -> Iterator[Any]:
    """A server with a tiny model that sees; its weights are random."""
    server = served(
        helpers,
        "idefics3",
        max_images=4,
        max_image_pixels=1_000_000,
        max_image_bytes=2_000_000,
        allow_image_hosts=("pictures.example", "inside.example", "2130706433", "0x7f.1"),
    )
    yield server
    server.stop()
    server.join()
