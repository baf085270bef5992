"""What is in a picture, drawn at random: the truth that questions are asked about."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from .colours import Rgb, background, colours_on
from .shapes import SHAPES

MOST_THINGS = 6
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")
WORDS = tuple(
    """cat dog sun hat cup box fox bear cow duck frog goat hen lion owl pig wolf bee key tea red
    blue lamp boat bird tree moon snow wind road shop park bread river stop go exit open yes no
    hello ice kite nest egg fish book ball star""".split()
)


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape or text. x, y: its middle, size: half its height; all as shares of the picture's
    edge. text: of a digit, a number or a word; else shape names its outline."""

    colour: str
    x: float
    y: float
    size: float
    shape: str = ""
    text: str = ""
    turn: float = 0.0

    @property
    def place(self) -> tuple[int, int]:
        """(row, column) of the ninth of the picture in which its middle is."""
        return min(int(self.y * 3), 2), min(int(self.x * 3), 2)

    @property
    def where(self) -> str:
        row, column = self.place
        if (row, column) == (1, 1):
            return "middle"
        return " ".join(
            name for name, at in ((ROWS[row], row), (COLUMNS[column], column)) if at != 1
        )


@dataclass(frozen=True, slots=True)
class Scene:
    """kind: "one", "several", "two", "digit", "number", "word", "bars" or "blank"; bars: the
    heights of a chart, its things give the colours."""

    kind: str
    back: Rgb
    things: tuple[Thing, ...] = ()
    bars: tuple[float, ...] = ()
    key: str = field(default="", compare=False)


def _inside(rng: random.Random, size: float) -> tuple[float, float]:
    return rng.uniform(size + 0.02, 0.98 - size), rng.uniform(size + 0.02, 0.98 - size)


def _clear_place(rng: random.Random, size: float) -> tuple[float, float]:
    """A place that nobody would call by the name of another ninth."""
    while True:
        x, y = _inside(rng, size)
        if all(abs(value - border) > 0.05 for value in (x, y) for border in (1 / 3, 2 / 3)):
            return x, y


def one(rng: random.Random) -> Scene:
    back = background(rng)
    (colour,) = colours_on(rng, back, 1)
    size = rng.uniform(0.13, 0.34) if rng.random() < 0.75 else rng.uniform(0.34, 0.46)
    x, y = _clear_place(rng, size) if size < 0.3 else _inside(rng, size)
    shape, turn = rng.choice(SHAPES), rng.uniform(-0.2, 0.2)
    thing = Thing(colour, x, y, size, shape, turn=turn)
    return Scene("one", back, (thing,), key=f"one {colour} {shape} {x:.2f} {y:.2f} {size:.2f}")


def several(rng: random.Random) -> Scene:
    """One to six things of one shape, apart from each other, in one or several colours."""
    back = background(rng)
    count = rng.randint(1, MOST_THINGS)
    names = colours_on(rng, back, count if rng.random() < 0.4 else 1)
    shape = rng.choice(SHAPES)
    high = (0.3, 0.24, 0.2, 0.17, 0.155, 0.145)[count - 1]
    things: list[Thing] = []
    for _ in range(400):
        if len(things) == count:
            break
        size = rng.uniform(0.095, high)
        x, y = _inside(rng, size)
        if all(_apart(x, y, size, other) for other in things):
            things.append(Thing(rng.choice(names), x, y, size, shape, turn=rng.uniform(-0.2, 0.2)))
    places = " ".join(f"{thing.x:.1f},{thing.y:.1f}" for thing in things)
    return Scene("several", back, tuple(things), key=f"several {shape} {places}")


def _apart(x: float, y: float, size: float, other: Thing) -> bool:
    gap = size + other.size + 0.035
    return max(abs(x - other.x), abs(y - other.y)) > gap or (
        (x - other.x) ** 2 + (y - other.y) ** 2 > (gap * 1.1) ** 2
    )


def two(rng: random.Random) -> Scene:
    """Two different shapes in two colours, side by side or one above the other."""
    back = background(rng)
    names = colours_on(rng, back, 2)
    if len(names) < 2:
        return two(rng)
    shapes = rng.sample(SHAPES, 2)
    sizes = [rng.uniform(0.12, 0.21) for _ in range(2)]
    along = [rng.uniform(0.22, 0.3), rng.uniform(0.7, 0.78)]
    middle = rng.uniform(0.3, 0.7)
    across = [min(max(middle + rng.uniform(-0.06, 0.06), 0.23), 0.77) for _ in range(2)]
    xs, ys = (along, across) if rng.random() < 0.5 else (across, along)
    things = tuple(
        Thing(names[i], xs[i], ys[i], sizes[i], shapes[i], turn=rng.uniform(-0.15, 0.15))
        for i in range(2)
    )
    key = " ".join(f"{t.colour} {t.shape} {t.x:.1f}" for t in things)
    return Scene("two", back, things, key=f"two {key}")


def _written(rng: random.Random, kind: str, text: str, high: float) -> Scene:
    back = background(rng)
    (colour,) = colours_on(rng, back, 1)
    size = rng.uniform(0.62, 1.0) * high
    x, y = rng.uniform(0.0, 1.0), rng.uniform(0.0, 1.0)
    thing = Thing(colour, x, y, size, text=text, turn=rng.uniform(-0.12, 0.12))
    return Scene(kind, back, (thing,), key=f"{kind} {text} {colour} {x:.1f} {y:.1f} {size:.2f}")


def digit(rng: random.Random) -> Scene:
    return _written(rng, "digit", str(rng.randrange(10)), 0.44)


def number(rng: random.Random) -> Scene:
    return _written(rng, "number", str(rng.randrange(10, 100)), 0.36)


def word(rng: random.Random) -> Scene:
    text = rng.choice(WORDS)
    styles: tuple[Callable[[str], str], ...] = (str.lower, str.upper, str.capitalize)
    return _written(rng, "word", rng.choice(styles)(text), 0.26)


def bars(rng: random.Random) -> Scene:
    """A chart of two to four bars of different colours, one clearly the tallest."""
    back = background(rng)
    names = colours_on(rng, back, rng.randint(2, 4))
    if len(names) < 2:
        return bars(rng)
    levels = rng.sample((0.18, 0.31, 0.44, 0.57, 0.7, 0.83), len(names))
    heights = tuple(level + rng.uniform(-0.03, 0.03) for level in levels)
    things = tuple(Thing(name, 0.0, 0.0, 0.0) for name in names)
    key = " ".join(f"{n} {h:.1f}" for n, h in zip(names, heights, strict=True))
    return Scene("bars", back, things, heights, key=f"bars {key}")


def blank(rng: random.Random) -> Scene:
    return Scene("blank", background(rng), key="taught")


# How often each kind is drawn.
KINDS: dict[str, tuple[Callable[[random.Random], Scene], float]] = {
    "one": (one, 26),
    "several": (several, 26),
    "two": (two, 12),
    "digit": (digit, 17),
    "number": (number, 5),
    "word": (word, 6),
    "bars": (bars, 6),
    "blank": (blank, 2),
}


def any_scene(rng: random.Random) -> Scene:
    makers = [maker for maker, _ in KINDS.values()]
    return rng.choices(makers, [share for _, share in KINDS.values()])[0](rng)
