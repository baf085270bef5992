"""Tables of positions are read as torch's bicubic grid_sample reads them."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

from mlx_parallm.models.vision.table import bicubic


def cubic(d: float) -> float:
    """Keys' kernel with a = -0.75, as its definition has it."""
    a, d = -0.75, abs(d)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def read(table: np.ndarray, y: float, x: float) -> np.ndarray:
    """One place, in float64."""
    found = np.zeros(table.shape[2])
    for row in range(math.floor(y) - 1, math.floor(y) + 3):
        for column in range(math.floor(x) - 1, math.floor(x) + 3):
            inside = table[min(max(row, 0), len(table) - 1), min(max(column, 0), 4)]
            found += cubic(y - row) * cubic(x - column) * inside
    return found


def test_places_between_and_beyond_the_entries() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4, 5, 3))
    places = [(0.0, 0.0), (3.0, 4.0), (1.5, 2.25), (-0.4, 4.4), (3.49, -0.49), (0.9, 3.6)]
    y, x = (mx.array(list(axis)) for axis in zip(*places, strict=True))
    found = bicubic(mx.array(table.astype(np.float32)), y, x)
    expected = np.array([read(table, *place) for place in places])
    assert np.abs(np.array(found) - expected).max() < 1e-5
    assert np.abs(np.array(found)[:2] - table[[0, 3], [0, 4]]).max() < 1e-6, "entries themselves"
