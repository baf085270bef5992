"""Clips, made as they are needed, and a server that watches them."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from tests.server.pictures.conftest import served as served_seeing

Image = pytest.importorskip("PIL.Image")
CODECS = {"mp4": "libx264", "webm": "libvpx-vp9", "mov": "libx264"}
SIZE = (84, 56)  # width, height


class Clips:
    """Makes videos. A frame is a number: the grey that it is painted with."""

    def pixels(self, grey: int, size: tuple[int, int] = SIZE) -> np.ndarray:
        """(height, width, 3); the left half is darker, so that one sees which side is up."""
        made = np.full((size[1], size[0], 3), grey, dtype=np.uint8)
        made[:, : size[0] // 2] //= 2
        return made

    def file(
        self,
        greys: Sequence[int],
        kind: str = "mp4",
        *,
        fps: int = 10,
        size: tuple[int, int] = SIZE,
        codec: str = "",
        pixel_format: str = "yuv420p",
    ) -> bytes:
        """A container with a key frame each second."""
        av = pytest.importorskip("av")
        out = io.BytesIO()
        with av.open(out, "w", format=kind) as container:
            stream = container.add_stream(codec or CODECS[kind], rate=fps)
            stream.width, stream.height = size
            stream.pix_fmt, stream.codec_context.gop_size = pixel_format, fps
            for grey in greys:
                frame = av.VideoFrame.from_ndarray(self.pixels(grey, size), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return out.getvalue()

    def picture(self, grey: int, kind: str = "PNG", size: tuple[int, int] = SIZE) -> bytes:
        """One frame as a picture's file."""
        out = io.BytesIO()
        Image.fromarray(self.pixels(grey, size)).save(out, format=kind)
        return out.getvalue()

    def url(self, data: bytes, kind: str = "video/mp4") -> str:
        """The data: URL of a file."""
        return f"data:{kind};base64,{base64.b64encode(data).decode()}"

    def frames(self, greys: Sequence[int], size: tuple[int, int] = SIZE) -> str:
        """The data: URL of a list of frames."""
        files = [base64.b64encode(self.picture(grey, size=size)).decode() for grey in greys]
        return "data:video/jpeg;base64," + ",".join(files)

    def part(self, url: Any) -> dict[str, Any]:
        """A part of a chat's message."""
        return {"type": "video_url", "video_url": {"url": url}}

    def chat(self, *shown: Any) -> list[dict[str, Any]]:
        """One message: a text is a text, a dict a part, and others are URLs of videos."""

        def part(one: Any) -> Any:
            if isinstance(one, dict):
                return one
            is_text = isinstance(one, str) and ":" not in one[:16]
            return {"type": "text", "text": one} if is_text else self.part(one)

        return [{"role": "user", "content": [part(one) for one in shown]}]


@pytest.fixture(scope="session")
def clips() -> Clips:
    return Clips()


def served(helpers: Any, family: str) -> Any:
    """A server with a tiny model of a family, or with one of a path, and limits for videos."""
    return served_seeing(
        helpers,
        family,
        max_videos=3,
        max_video_frames=40,
        max_video_bytes=2_000_000,
        max_video_pixels=1_000_000,
        max_video_seconds=100.0,
        max_image_pixels=500_000,
        allow_image_hosts=("videos.example", "inside.example"),
    )


@pytest.fixture(scope="session")
def watching(helpers: Any) -> Iterator[Any]:
    server = served(helpers, "qwen3_vl")
    yield server
    server.stop()
    server.join()
