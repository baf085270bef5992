"""What the tower learns first, without the language model: to tell what is in a picture.

Each probe looks at the tower's tokens with a query of its own and names one property. This costs
a fifth of a step with the language model, and is most of what there is to learn.
"""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from bundled.fast_ops import cross_entropy

from .colours import COLOURS
from .scenes import KINDS, MOST_THINGS, Scene, Thing
from .shapes import SHAPES

_LETTERS = 5
_COLOURS = tuple(COLOURS)

# Name of a property -> how many values it has.
PROPERTIES: dict[str, int] = {
    "kind": len(KINDS),
    "colour": len(COLOURS),
    "shape": len(SHAPES),
    "digit": 10,
    "count": MOST_THINGS + 1,
    "place": 9,
    "first_colour": len(COLOURS),
    "first_shape": len(SHAPES),
    "second_colour": len(COLOURS),
    "second_shape": len(SHAPES),
    "above": 2,
    "tens": 10,
    "ones": 10,
    **{f"letter{i}": 27 for i in range(_LETTERS)},
    "bars": 5,
    "tallest": len(COLOURS),
    "shortest": len(COLOURS),
}


def properties(scene: Scene) -> dict[str, int]:
    """The value of each property that this picture has."""
    found = {"kind": list(KINDS).index(scene.kind)}
    things = scene.things
    names = {thing.colour for thing in things}
    if scene.kind != "bars" and len(names) == 1:
        found["colour"] = _COLOURS.index(names.pop())
    if scene.kind in ("one", "several"):
        found["shape"] = SHAPES.index(things[0].shape)
    if scene.kind in ("one", "several", "two", "blank"):
        found["count"] = len(things)
    return found | _of_kind(scene, things)


def _of_kind(scene: Scene, things: tuple[Thing, ...]) -> dict[str, int]:
    if scene.kind == "one":
        row, column = things[0].place
        return {"place": 3 * row + column}
    if scene.kind == "two":
        names = ("first", "second")
        pairs = list(zip(names, things, strict=True))
        return {
            **{f"{name}_colour": _COLOURS.index(thing.colour) for name, thing in pairs},
            **{f"{name}_shape": SHAPES.index(thing.shape) for name, thing in pairs},
            "above": int(abs(things[0].y - things[1].y) > abs(things[0].x - things[1].x)),
        }
    if scene.kind == "digit":
        return {"digit": int(things[0].text)}
    if scene.kind == "number":
        return {"tens": int(things[0].text[0]), "ones": int(things[0].text[1])}
    if scene.kind == "word":
        letters = [ord(c) - 96 for c in things[0].text.lower().ljust(_LETTERS, "`")]
        return {f"letter{i}": letter for i, letter in enumerate(letters)}
    if scene.kind == "bars":
        order = sorted(range(len(things)), key=lambda i: scene.bars[i])
        return {
            "bars": len(things),
            "tallest": _COLOURS.index(things[order[-1]].colour),
            "shortest": _COLOURS.index(things[order[0]].colour),
        }
    return {}


class Probes(nn.Module):
    """Tokens (B, T, W) -> logits of every property, one after the other (B, sum of values)."""

    def __init__(self, width: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.queries = mx.random.normal((len(PROPERTIES), width)) * width**-0.5
        self.heads = [nn.Linear(2 * width, values) for values in PROPERTIES.values()]

    def __call__(self, tokens: mx.array) -> list[mx.array]:
        tokens = mx.fast.rms_norm(tokens, None, 1e-5)
        shares = mx.softmax(tokens @ self.queries.T, axis=1)
        looked = shares.swapaxes(1, 2) @ tokens
        mean = tokens.mean(axis=1)
        return [
            head(mx.concatenate([looked[:, i], mean], axis=-1)) for i, head in enumerate(self.heads)
        ]


def labels(scenes: list[Scene]) -> np.ndarray:
    """(B, properties) int32, -1 where a picture does not have one."""
    found = [properties(scene) for scene in scenes]
    return np.array([[one.get(name, -1) for name in PROPERTIES] for one in found], dtype=np.int32)


def probe_losses(logits: list[mx.array], truth: mx.array) -> mx.array:
    """(properties, B): the loss of each; nothing where there is no truth."""
    losses = []
    for i, one in enumerate(logits):
        wanted = truth[:, i]
        loss = cross_entropy(one, mx.maximum(wanted, 0))
        losses.append(loss * (wanted >= 0))
    return mx.stack(losses)
