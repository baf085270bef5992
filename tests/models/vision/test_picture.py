"""A picture's name is its content: size and every pixel, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from mlx_parallm.models.vision.picture import Picture


def _pixels(seed: int = 0, height: int = 6, width: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_equal_pictures_have_one_digest() -> None:
    one, other = Picture(_pixels()), Picture(_pixels().copy(), detail="high")
    assert one.digest == other.digest
    assert (one.height, one.width) == (6, 4)


def test_a_view_has_the_digest_of_its_copy() -> None:
    wide = _pixels(width=8)
    assert Picture(wide[:, ::2]).digest == Picture(wide[:, ::2].copy()).digest


def test_one_pixel_or_the_shape_makes_another_digest() -> None:
    changed = _pixels()
    changed[-1, -1, -1] ^= 1
    same_bytes = _pixels().reshape(4, 6, 3)
    digests = {Picture(pixels).digest for pixels in (_pixels(), changed, same_bytes)}
    assert len(digests) == 3


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_other_arrays_are_no_pictures(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="not RGB"):
        Picture(pixels)
