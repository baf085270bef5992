"""Outlines of the shapes, in a square from -1 to 1."""

from __future__ import annotations

import math

Point = tuple[float, float]


def _regular(corners: int, turn: float = 0.0) -> list[Point]:
    angles = [turn + 2 * math.pi * i / corners - math.pi / 2 for i in range(corners)]
    return [(math.cos(angle), math.sin(angle)) for angle in angles]


def _star() -> list[Point]:
    outer, inner = _regular(5), _regular(5, math.pi / 5)
    pairs = zip(outer, inner, strict=True)
    return [point for far, (x, y) in pairs for point in (far, (0.42 * x, 0.42 * y))]


def _heart() -> list[Point]:
    points = []
    for i in range(60):
        t = 2 * math.pi * i / 60
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 17, -y / 17))
    return points


def _cross() -> list[Point]:
    arm = 0.33
    quarter = [(-arm, -1.0), (arm, -1.0), (arm, -arm)]
    turned = []
    for _ in range(4):
        turned += quarter
        quarter = [(-y, x) for x, y in quarter]
    return turned


# A ring is a circle with a hole; drawing.py makes the hole.
OUTLINES: dict[str, list[Point]] = {
    "circle": _regular(48),
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": _regular(3),
    "diamond": [(0.0, -1.0), (0.68, 0.0), (0.0, 1.0), (-0.68, 0.0)],
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
    "ring": _regular(48),
}
SHAPES = tuple(OUTLINES)
