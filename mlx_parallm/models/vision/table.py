"""Positions of patches in a table that was learnt for pictures of one size."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np

_SHARPNESS = -0.75  # of the cubic, as torch has it


def mend_tables(model: Any) -> None:
    """Let GLM-4V's towers read their tables as transformers does, by bicubic interpolation.

    mlx-vlm's read them by bilinear interpolation, with zeros around the table.

    Args:
        model: mlx-vlm's; towers of other families stay as they are.
    """
    for part in model.modules():
        if type(part).__name__ in ("Glm4vVisionEmbeddings", "Glm4vMoeVisionEmbeddings"):
            kind = type(part)
            part.__class__ = type(
                kind.__name__, (kind,), {"__call__": _add_positions, "__module__": kind.__module__}
            )


def _add_positions(
    self: Any, patches: mx.array, lengths: list[int], shapes: mx.array, h: mx.array, w: mx.array
) -> mx.array:
    """(N, D) patches of pictures with their positions added.

    Args:
        lengths: patches of each picture.
        shapes: (pictures, 3) patches in time, height and width.
        h, w: (N,) where a patch is.
    """
    weight = self.position_embedding.weight
    side = round(float(weight.shape[0]) ** 0.5)
    heights, widths = np.repeat(np.array(shapes)[:, 1:], lengths, axis=0).T.astype(np.float32)
    found = bicubic(
        weight.reshape(side, side, -1).astype(mx.float32),
        (h + 0.5) / mx.array(heights) * side - 0.5,
        (w + 0.5) / mx.array(widths) * side - 0.5,
    )
    return patches + found.astype(patches.dtype)


def bicubic(table: mx.array, y: mx.array, x: mx.array) -> mx.array:
    """(N, D) of a (H, W, D) table at N places, which need not be whole nor inside.

    As torch's grid_sample with padding_mode "border": what is outside is as the nearest inside.
    """
    rows, row_weights = _neighbours(y, table.shape[0])
    columns, column_weights = _neighbours(x, table.shape[1])
    found = mx.zeros((len(y), table.shape[2]))
    for row, row_weight in zip(rows, row_weights, strict=True):
        for column, column_weight in zip(columns, column_weights, strict=True):
            found = found + (row_weight * column_weight)[:, None] * table[row, column]
    return found


def _neighbours(at: mx.array, size: int) -> tuple[list[mx.array], list[mx.array]]:
    """The four places around each, and how much each of them counts."""
    first = mx.floor(at)
    apart = [mx.abs(at - first - step) for step in (-1, 0, 1, 2)]
    places = [mx.clip(first + step, 0, size - 1).astype(mx.int32) for step in (-1, 0, 1, 2)]
    return places, [_far(apart[0]), _near(apart[1]), _near(apart[2]), _far(apart[3])]


def _near(d: mx.array) -> mx.array:
    """Of places at most 1 away."""
    return ((_SHARPNESS + 2) * d - (_SHARPNESS + 3)) * d * d + 1


def _far(d: mx.array) -> mx.array:
    """Of places 1 to 2 away."""
    return ((_SHARPNESS * d - 5 * _SHARPNESS) * d + 8 * _SHARPNESS) * d - 4 * _SHARPNESS
