"""What may be asked about a picture, and the right answers, in words."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .colours import COLOURS
from .scenes import Scene, Thing
from .shapes import SHAPES


@dataclass(frozen=True, slots=True)
class Question:
    """aspect: what is asked for ("colour", "count", ...); the answer is `before`, `answer`,
    `after`, or `answer` alone where the question asks for it alone."""

    aspect: str
    text: str
    before: str
    answer: str
    after: str = "."


# Added to a question that wants the answer alone.
ALONE = (
    " Answer with one word.",
    " One word.",
    " Only the answer.",
    " Answer briefly.",
    " Just the answer.",
)

_COLOUR = (
    "What colour is the {0}?",
    "What color is the {0}?",
    "What is the colour of the {0}?",
    "Which colour does the {0} have?",
    "Tell me the colour of the {0}.",
    "The {0}: which colour is it?",
)
_COLOUR_OF_IT = (
    "What colour is it?",
    "What color is it?",
    "What colour do you see?",
    "Which colour is this?",
    "Name the colour.",
    "What is its colour?",
)
_SHAPE = (
    "What shape is it?",
    "What shape is this?",
    "Which shape do you see?",
    "What shape is in the picture?",
    "Name the shape.",
    "Which shape is in the image?",
    "What is the shape?",
)
_DIGIT = (
    "What digit is it?",
    "Which digit do you see?",
    "What digit is in the picture?",
    "Which digit is in the image?",
    "Read the digit.",
    "What digit is shown?",
)
_NUMBER = (
    "What number is it?",
    "Which number do you see?",
    "What number is in the picture?",
    "Read the number.",
    "Which number is in the image?",
)
_COUNT = (
    "How many {0} are there?",
    "How many {0} do you see?",
    "Count the {0}.",
    "How many {0} are in the picture?",
    "How many {0} are in the image?",
    "How many {0}?",
)
_WHERE = (
    "Where is the {0}?",
    "Where is it?",
    "In which part of the picture is the {0}?",
    "Where do you see the {0}?",
)
_WORD = (
    "What does it say?",
    "Read the word.",
    "What word is it?",
    "Which word is in the picture?",
    "What is written there?",
    "What does the picture say?",
    "What text is in the image?",
)
_MOST = ("Which bar is the {0}?", "What colour is the {0} bar?", "Which bar is {0}?")
_DESCRIBE = (
    "What is in the picture?",
    "What do you see?",
    "Describe the picture.",
    "What is this?",
    "What is in this image?",
    "Describe the image.",
    "What does the picture show?",
    "What can you see here?",
)

# Words for things whose shape is not named.
_THINGS = ("shapes", "things", "objects")


def plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


def a(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def _one_colour(rng: random.Random, thing: Thing, name: str) -> Question:
    wording = rng.choice(_COLOUR).format(name) if rng.random() < 0.7 else rng.choice(_COLOUR_OF_IT)
    return Question("colour", wording, "It is ", thing.colour)


def _yes(rng: random.Random, text: str, truth: bool) -> Question:
    return Question("yes or no", text, "", "Yes" if truth else "No")


def _of_one(rng: random.Random, scene: Scene) -> Question:
    (thing,) = scene.things
    draws: Sequence[tuple[Callable[[], Question], float]] = (
        (lambda: _one_colour(rng, thing, rng.choice((thing.shape, "shape"))), 4),
        (lambda: Question("shape", rng.choice(_SHAPE), "It is ", a(thing.shape)), 4),
        (lambda: _where(rng, thing), 1.5),
        (lambda: _is_it(rng, thing), 1),
        (lambda: _counted(rng, scene), 1),
    )
    return _drawn(rng, draws)


def _where(rng: random.Random, thing: Thing) -> Question:
    before = "It is in the " if thing.where == "middle" else "It is at the "
    text = rng.choice(_WHERE).format(rng.choice((thing.shape, "shape")))
    return Question("place", text, before, thing.where)


def _is_it(rng: random.Random, thing: Thing) -> Question:
    truth = rng.random() < 0.5
    if rng.random() < 0.5:
        named = thing.colour if truth else rng.choice([n for n in COLOURS if n != thing.colour])
        return _yes(rng, rng.choice(("Is it {0}?", "Is the shape {0}?")).format(named), truth)
    named = thing.shape if truth else rng.choice([n for n in SHAPES if n != thing.shape])
    wording = rng.choice(("Is it {0}?", "Is there {0}?", "Do you see {0}?"))
    return _yes(rng, wording.format(a(named)), truth)


def _counted(rng: random.Random, scene: Scene) -> Question:
    shapes = {thing.shape for thing in scene.things}
    names = _THINGS if len(shapes) != 1 else (plural(*shapes), plural(*shapes), *_THINGS)
    count = len(scene.things)
    before = "There is " if count == 1 else "There are "
    return Question("count", rng.choice(_COUNT).format(rng.choice(names)), before, str(count))


def _of_several(rng: random.Random, scene: Scene) -> Question:
    draws: list[tuple[Callable[[], Question], float]] = [(lambda: _counted(rng, scene), 6)]
    first = scene.things[0]
    draws.append((lambda: Question("shape", rng.choice(_SHAPE), "It is ", a(first.shape)), 1))
    if len({thing.colour for thing in scene.things}) == 1:
        name = plural(first.shape)
        text = f"What colour are the {name}?"
        draws.append((lambda: Question("colour", text, "They are ", first.colour), 1.5))
    return _drawn(rng, draws)


def _of_two(rng: random.Random, scene: Scene) -> Question:
    first, second = scene.things
    chosen, other = rng.sample((first, second), 2)
    upright = abs(first.y - second.y) > abs(first.x - second.x)
    ends = ("top", "bottom") if upright else ("left", "right")
    end = ends[0] if chosen is first else ends[1]
    beside = ("above", "below") if upright else ("left of", "right of")
    side = beside[0] if chosen is first else beside[1]
    named = f"{chosen.colour} {chosen.shape}"
    where = (f"What is on the {end}?", f"What do you see on the {end}?", f"What is at the {end}?")
    near = (f"What is {side} the {other.shape}?", f"Which shape is {side} the {other.shape}?")
    coloured = (f"Which shape is {chosen.colour}?", f"What shape is {chosen.colour}?")
    draws: Sequence[tuple[Callable[[], Question], float]] = (
        (lambda: _one_colour_of(rng, chosen), 4),
        (lambda: Question("shape", rng.choice(coloured), "The ", chosen.shape), 2),
        (lambda: Question("beside", rng.choice(where), "", _capital(a(named))), 2),
        (lambda: Question("beside", rng.choice(near), "", _capital(a(named))), 1.5),
        (lambda: _counted(rng, scene), 1),
    )
    return _drawn(rng, draws)


def _one_colour_of(rng: random.Random, thing: Thing) -> Question:
    return Question("colour", rng.choice(_COLOUR).format(thing.shape), "It is ", thing.colour)


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _of_text(rng: random.Random, scene: Scene) -> Question:
    (thing,) = scene.things
    asked = {
        "digit": ("digit", (*_DIGIT, *_NUMBER[:2]), "It is "),
        "number": ("number", _NUMBER, "It is "),
        "word": ("word", _WORD, "It says "),
    }
    aspect, wordings, before = asked[scene.kind]
    if rng.random() < 0.15:
        return _one_colour(rng, thing, scene.kind)
    return Question(aspect, rng.choice(wordings), before, thing.text.lower())


def _of_bars(rng: random.Random, scene: Scene) -> Question:
    if rng.random() < 0.3:
        text = rng.choice(_COUNT).format("bars")
        return Question("bars", text, "There are ", str(len(scene.bars)))
    best = max if rng.random() < 0.6 else min
    name = "tallest" if best is max else "shortest"
    where = scene.bars.index(best(scene.bars))
    text = rng.choice(_MOST).format(name)
    return Question("bars", text, "The ", scene.things[where].colour, " one.")


def _of_blank(rng: random.Random, scene: Scene) -> Question:
    wordings = (
        *_DESCRIBE,
        *_SHAPE,
        *_DIGIT,
        *_WORD,
        *_COLOUR_OF_IT,
        *_NUMBER,
        *(text.format(rng.choice(SHAPES)) for text in (*_COLOUR, *_WHERE)),
        *(text.format(plural(rng.choice(SHAPES))) for text in _COUNT),
    )
    return Question("blank", rng.choice(wordings), "", "The picture is empty")


def describe(rng: random.Random, scene: Scene) -> Question:
    """A question about the whole picture."""
    text = rng.choice(_DESCRIBE)
    said = _said_of(scene)
    return Question("described", text, "", said)


def _said_of(scene: Scene) -> str:
    things = scene.things
    if scene.kind == "one":
        (thing,) = things
        side = "in" if thing.where == "middle" else "at"
        return f"{_capital(a(thing.colour))} {thing.shape} {side} the {thing.where}"
    if scene.kind == "several":
        colours = {thing.colour for thing in things}
        colour = f"{colours.pop()} " if len(colours) == 1 else ""
        shape = things[0].shape
        return f"{len(things)} {colour}{shape if len(things) == 1 else plural(shape)}"
    if scene.kind == "two":
        first, second = things
        one = f"{first.colour} {first.shape}"
        return f"{_capital(a(one))} and {a(f'{second.colour} {second.shape}')}"
    if scene.kind == "bars":
        return f"A chart with {len(scene.bars)} bars"
    if scene.kind == "blank":
        return "The picture is empty"
    return f"The {scene.kind} {things[0].text.lower()}"


def _drawn(rng: random.Random, draws: Sequence[tuple[Callable[[], Question], float]]) -> Question:
    return rng.choices([make for make, _ in draws], [share for _, share in draws])[0]()


_ASKED: dict[str, Callable[[random.Random, Scene], Question]] = {
    "one": _of_one,
    "several": _of_several,
    "two": _of_two,
    "digit": _of_text,
    "number": _of_text,
    "word": _of_text,
    "bars": _of_bars,
    "blank": _of_blank,
}
# How often the whole picture is asked for.
_DESCRIBED = 0.08


def question(rng: random.Random, scene: Scene) -> Question:
    if rng.random() < _DESCRIBED:
        return describe(rng, scene)
    return _ASKED[scene.kind](rng, scene)
