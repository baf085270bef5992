"""A scene as pixels."""

from __future__ import annotations

import functools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from .colours import shade, stands_out
from .scenes import Scene, Thing
from .shapes import OUTLINES

# Edges that pictures are drawn with before they are brought to the model's.
_EDGES = (96, 128, 192)
_FONT_FOLDERS = ("/usr/share/fonts", "/Library/Fonts", "/System/Library/Fonts/Supplemental")
_FONT_NAMES = ("dejavusans", "dejavuserif", "liberation", "arial", "times", "courier", "verdana")
_ODD_FONTS = ("extralight", "math", "symbol", "unicode")


@functools.cache
def font_files() -> list[str]:
    """Common fonts of this machine; "" is the one that Pillow brings, which is always there."""
    found = [
        str(path)
        for folder in _FONT_FOLDERS
        for path in sorted(Path(folder).rglob("*.ttf"))
        if path.name.lower().startswith(_FONT_NAMES)
        and not any(odd in path.name.lower() for odd in _ODD_FONTS)
    ]
    return ["", *found]


@functools.lru_cache(maxsize=512)
def _font(path: str, size: int) -> Any:
    return ImageFont.truetype(path, size) if path else ImageFont.load_default(size)


def draw(rng: random.Random, scene: Scene, edge: int) -> np.ndarray:
    """The picture of a scene, (edge, edge, 3) uint8 RGB."""
    drawn = rng.choice(_EDGES)
    image = _ground(rng, scene, drawn)
    pen = ImageDraw.Draw(image)
    if scene.bars:
        _draw_bars(rng, pen, scene, drawn)
    for thing in scene.things if not scene.bars else ():
        if thing.text:
            _draw_text(rng, image, scene, thing)
        else:
            _draw_shape(rng, pen, scene, thing, drawn)
    if rng.random() < 0.15:
        image = image.filter(ImageFilter.GaussianBlur(drawn / 64 * rng.uniform(0.2, 0.7)))
    how = rng.choice((Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BOX))
    pixels = np.asarray(image.resize((edge, edge), how))
    return _noisy(rng, pixels) if rng.random() < 0.5 else pixels


def _noisy(rng: random.Random, pixels: np.ndarray) -> np.ndarray:
    grain = np.random.default_rng(rng.getrandbits(32)).normal(0.0, rng.uniform(2, 9), pixels.shape)
    return np.clip(pixels + grain, 0, 255).astype(np.uint8)


def _ground(rng: random.Random, scene: Scene, edge: int) -> Image.Image:
    """Plain mostly; else a gradient, or stripes that are hardly darker."""
    back = np.array(scene.back, dtype=np.float32)
    kind = rng.random()
    if kind < 0.55:
        return Image.new("RGB", (edge, edge), scene.back)
    if kind < 0.85:
        ramp = np.linspace(-1, 1, edge) * rng.uniform(5, 22)
        light = ramp[:, None] if rng.random() < 0.5 else ramp[None, :]
    else:
        period, axis = edge * rng.uniform(0.06, 0.2), np.arange(edge)
        waves = np.sign(np.sin(2 * math.pi * axis / period)) * rng.uniform(2, 9)
        light = waves[:, None] if rng.random() < 0.5 else waves[None, :]
    pixels = back + np.broadcast_to(light, (edge, edge))[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8), "RGB")


def _colour(rng: random.Random, scene: Scene, name: str) -> tuple[int, int, int]:
    """A shade of the colour; one that is seen on the background."""
    while not stands_out(colour := shade(rng, name), scene.back):
        pass
    return colour


def _draw_shape(
    rng: random.Random, pen: ImageDraw.ImageDraw, scene: Scene, thing: Thing, edge: int
) -> None:
    colour = _colour(rng, scene, thing.colour)
    pen.polygon(_placed(thing, 1.0, edge), fill=colour)
    if thing.shape == "ring":
        pen.polygon(_placed(thing, rng.uniform(0.45, 0.62), edge), fill=scene.back)


def _placed(thing: Thing, scale: float, edge: int) -> list[tuple[float, float]]:
    cosine, sine = math.cos(thing.turn), math.sin(thing.turn)
    size = thing.size * scale
    return [
        (
            (thing.x + size * (cosine * x - sine * y)) * edge,
            (thing.y + size * (sine * x + cosine * y)) * edge,
        )
        for x, y in OUTLINES[thing.shape]
    ]


def _draw_text(rng: random.Random, image: Image.Image, scene: Scene, thing: Thing) -> None:
    """Turned a little, and wholly inside: x and y say where between the borders."""
    edge = image.width
    colour = _colour(rng, scene, thing.colour)
    font = _font(rng.choice(font_files()), max(int(thing.size * 2 * edge), 8))
    left, top, right, bottom = font.getbbox(thing.text)
    mask = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), thing.text, fill=255, font=font)
    mask = mask.rotate(math.degrees(thing.turn), Image.Resampling.BICUBIC, expand=True)
    widest = 0.94 * edge
    if max(mask.size) > widest:
        scale = widest / max(mask.size)
        mask = mask.resize((max(int(mask.width * scale), 1), max(int(mask.height * scale), 1)))
    x, y = (edge - mask.width) * thing.x, (edge - mask.height) * thing.y
    image.paste(Image.new("RGB", mask.size, colour), (int(x), int(y)), mask)


def _draw_bars(rng: random.Random, pen: ImageDraw.ImageDraw, scene: Scene, edge: int) -> None:
    count = len(scene.bars)
    slot = 0.9 / count
    width = slot * rng.uniform(0.55, 0.8)
    floor = rng.uniform(0.93, 0.97)
    for i, (height, thing) in enumerate(zip(scene.bars, scene.things, strict=True)):
        left = 0.07 + i * slot + (slot - width) / 2
        box = (left * edge, (floor - height) * edge, (left + width) * edge, floor * edge)
        pen.rectangle(box, fill=_colour(rng, scene, thing.colour))
    if rng.random() < 0.6:
        line = (0, 0, 0) if sum(scene.back) > 380 else (255, 255, 255)
        pen.line(
            (0.05 * edge, floor * edge, 0.97 * edge, floor * edge), fill=line, width=edge // 64
        )
        pen.line((0.05 * edge, 0.05 * edge, 0.05 * edge, floor * edge), fill=line, width=edge // 64)
