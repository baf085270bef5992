"""What is measured on the bundled model that sees: held-out pictures, asked about over HTTP."""

from __future__ import annotations

import base64
import io
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from bundled.sample import Message
from PIL import Image

from . import scenes
from .colours import COLOURS
from .drawing import draw
from .pool import scene_of
from .questions import Question, question
from .scenes import COLUMNS, MOST_THINGS, ROWS, WORDS, Scene
from .shapes import SHAPES

# Larger than what the model looks at: the server makes it smaller.
_EDGE = 144

_DIGITS = tuple(str(digit) for digit in range(10))
_COUNTS = tuple(str(count) for count in range(1, MOST_THINGS + 1))


@dataclass(frozen=True, slots=True)
class Group:
    """A row of the table: what is asked of which pictures, and the share that is aimed for.

    Attributes:
        among: the answers that there are, of which the right one, and no other, is to be named;
            none: the answer is compared as a whole.
        goal: None where there is none.
    """

    title: str
    make: Callable[[random.Random], Scene]
    aspect: str
    among: tuple[str, ...]
    goal: float | None

    @property
    def chance(self) -> float:
        return 1 / len(self.among) if self.among else 0.0


_COLOURS = tuple(COLOURS)
GROUPS = (
    Group("Colour of a shape", scenes.one, "colour", _COLOURS, 0.98),
    Group("Shape", scenes.one, "shape", SHAPES, 0.95),
    Group("Digit", scenes.digit, "digit", _DIGITS, 0.95),
    Group("Count of one to six things", scenes.several, "count", _COUNTS, 0.85),
    Group("Place of a shape", scenes.one, "place", (), None),
    Group("Colour of one of two shapes", scenes.two, "colour", _COLOURS, None),
    Group("What is beside another shape", scenes.two, "beside", (), None),
    Group("Number of two digits", scenes.number, "number", (), None),
    Group("Short word", scenes.word, "word", WORDS, None),
    Group("Bars: how many, the tallest, the shortest", scenes.bars, "bars", (), None),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """One question about one picture."""

    group: Group
    messages: list[Message]
    asked: Question

    def is_right(self, said: str) -> bool:
        """Whether an answer names what is asked for, and nothing else of its kind."""
        words = re.findall(r"[a-z0-9]+", said.lower())
        wanted = self.asked.answer.lower().split()
        if not self.group.among:
            return wanted == [word for word in words if word in _SAYING or word in wanted]
        named = {word for word in words if word in self.group.among}
        return named == {wanted[-1]}


# Words that say something of a picture; others may stand around them.
_SAYING = {*COLOURS, *SHAPES, *ROWS, *COLUMNS, *_DIGITS, *(str(n) for n in range(10, 100))}


def shown(group: Group, count: int, *, blank: bool = False) -> list[Shown]:
    """`count` held-out pictures with a question each.

    Args:
        blank: show empty pictures instead, with the same questions.
    """
    rng = random.Random(f"held out {group.title}")
    found: list[Shown] = []
    while len(found) < count:
        scene = scene_of(rng, held_out=True, make=group.make)
        asked = question(rng, scene)
        if asked.aspect == group.aspect:
            seen = scenes.blank(rng) if blank else scene
            found.append(Shown(group, _messages(rng, seen, asked), asked))
    return found


def _messages(rng: random.Random, scene: Scene, asked: Question) -> list[Message]:
    picture = {"type": "image_url", "image_url": {"url": _url(rng, scene)}}
    return [{"role": "user", "content": [picture, {"type": "text", "text": asked.text}]}]


def _url(rng: random.Random, scene: Scene) -> str:
    out = io.BytesIO()
    Image.fromarray(draw(rng, scene, _EDGE)).save(out, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
