"""Bytes -> Picture."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import pytest

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.models.vision.picture import Picture
from mlx_parallm.server.input.pictures.decoding import decode

Image = pytest.importorskip("PIL.Image")

MAX_PIXELS = 1000


def decoded(data: bytes) -> Picture:
    return decode(data, detail="auto", max_pixels=MAX_PIXELS, param="here")


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP", "GIF"])
def test_the_four_formats(files: Any, format_: str) -> None:
    picture = decoded(files.plain(format_, (8, 5)))
    assert picture.pixels.shape == (5, 8, 3)
    assert np.abs(picture.pixels.astype(int) - (200, 30, 40)).max() <= 4


def test_pixels_are_those_of_the_file(files: Any) -> None:
    data = files.noisy()
    with Image.open(io.BytesIO(data)) as image:
        assert np.array_equal(decoded(data).pixels, np.asarray(image))


def test_a_photo_is_turned_as_its_exif_data_say(files: Any) -> None:
    image = Image.new("RGB", (8, 4), "white")
    image.putpixel((0, 0), (0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = decoded(files.encoded(image, "PNG", exif=exif))
    assert picture.pixels.shape == (8, 4, 3)
    assert picture.pixels[0, -1].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_parts_are_white(files: Any, mode: str) -> None:
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.putpixel((0, 0), (0, 0, 0, 255))
    picture = decoded(files.encoded(image.convert(mode)))
    assert picture.pixels[0, 0].tolist() == [0, 0, 0]
    assert picture.pixels[1, 3].tolist() == [255, 255, 255]


def test_an_animation_is_its_first_frame(files: Any) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = files.encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(data).pixels[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "I;16"])
def test_other_ways_to_keep_colours(files: Any, mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((3, 4), 0x8000, dtype=np.uint16))
    else:
        image = Image.new("L", (4, 3), 128).convert(mode)
    data = files.encoded(image, "JPEG" if mode == "CMYK" else "PNG")
    assert decoded(data).pixels.shape == (3, 4, 3)
    if mode == "I;16":
        assert decoded(data).pixels[0, 0].tolist() == [128, 128, 128]


def test_equal_pictures_have_one_digest_whatever_the_file(files: Any) -> None:
    assert decoded(files.plain("PNG")).digest == decoded(files.plain("GIF")).digest
    assert decoded(files.plain(size=(6, 4))).digest != decoded(files.plain(size=(4, 6))).digest


@pytest.mark.parametrize("at", ["limit", "above"])
def test_pixels_are_counted_before_anything_is_decoded(files: Any, at: str) -> None:
    width = MAX_PIXELS if at == "limit" else MAX_PIXELS + 1
    # There is nothing to decode.
    data = files.png_of(width, 1, b"")
    with pytest.raises(InvalidRequestError) as told:
        decoded(data)
    assert ("too large" in told.value.message) == (at == "above")
    assert told.value.param == "here"


def test_a_bomb_is_refused_by_its_header(files: Any) -> None:
    # 169 million pixels in some 20 kB, and as many as make Pillow itself refuse.
    rows = zlib.compress(bytes(13_000 // 8 + 1) * 13_000, 9)
    for data in (files.png_of(13_000, 13_000, rows, mode=0, depth=1), _huge(files)):
        assert len(data) < 30_000
        with pytest.raises(InvalidRequestError, match="too large"):
            decoded(data)


def _huge(files: Any) -> bytes:
    made: bytes = files.png_of(2**31 - 1, 2**31 - 1, b"")
    return made


def test_what_is_no_picture_is_an_error_of_the_request(files: Any) -> None:
    whole = files.noisy("PNG", (20, 20))
    jpeg = files.noisy("JPEG", (20, 20))
    for data in (
        b"",
        b"\x89PNG\r\n\x1a\n",
        whole[:-30],
        whole[:40],
        jpeg[: len(jpeg) // 2],
        b"\xff\xd8\xff" + b"\x00" * 64,
        b"GIF89a" + b"\xff" * 40,
        b"RIFF\x00\x00\x00\x00WEBP" + b"x" * 40,
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        files.plain("TIFF"),
        files.plain("BMP"),
        b"%PDF-1.7\n" + whole,
        b"#!/bin/sh\n" + whole,
    ):
        with pytest.raises(InvalidRequestError):
            decoded(data)
