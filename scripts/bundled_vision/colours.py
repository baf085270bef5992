"""The colours that have names, and backgrounds on which they can be told."""

from __future__ import annotations

import random

import numpy as np

Rgb = tuple[int, int, int]

# Words that the tokenizer knows as one or two tokens; the values lie well apart.
COLOURS: dict[str, Rgb] = {
    "red": (215, 30, 35),
    "green": (35, 155, 55),
    "blue": (40, 75, 215),
    "yellow": (240, 220, 40),
    "orange": (245, 135, 20),
    "brown": (120, 70, 35),
    "violet": (140, 50, 190),
    "pink": (245, 145, 190),
    "black": (18, 18, 18),
    "white": (245, 245, 245),
    "grey": (130, 130, 130),
}

# How far a colour may stray from its value, each of red, green and blue.
_STRAY = 16
# Least distance between what is drawn and what is behind it.
_CONTRAST = 115.0


def shade(rng: random.Random, name: str) -> Rgb:
    """The colour of this name as it may look in a picture."""
    red, green, blue = (
        min(max(value + rng.randint(-_STRAY, _STRAY), 0), 255) for value in COLOURS[name]
    )
    return red, green, blue


def stands_out(front: Rgb, back: Rgb) -> bool:
    return float(np.linalg.norm(np.subtract(front, back))) >= _CONTRAST


def background(rng: random.Random) -> Rgb:
    """Mostly light, sometimes dark, sometimes any colour that is not strong."""
    kind = rng.random()
    if kind < 0.5:
        low, high = 205, 255
    elif kind < 0.75:
        low, high = 0, 60
    else:
        low, high = 60, 200
    base = rng.randint(low, high)
    red, green, blue = (min(max(base + rng.randint(-28, 28), 0), 255) for _ in range(3))
    return red, green, blue


def colours_on(rng: random.Random, back: Rgb, count: int) -> list[str]:
    """`count` different names of colours that can be seen on `back`; fewer where there are not
    so many."""
    able = [name for name, value in COLOURS.items() if stands_out(value, back)]
    return rng.sample(able, min(count, len(able)))
