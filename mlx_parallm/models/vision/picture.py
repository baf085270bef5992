"""A Picture as a request gives it: decoded, within all limits, and named by its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

Detail = Literal["auto", "low", "high"]
DETAILS: tuple[Detail, ...] = get_args(Detail)


@dataclass(frozen=True, eq=False, slots=True)
class Picture:
    """One picture of a request.

    Attributes:
        pixels: (height, width, 3) uint8, RGB.
        detail: how finely the model should look, as OpenAI's API means it.
        digest: of size and pixels: equal for equal pictures, whatever file they came from.

    Raises:
        ValueError: the pixels have another shape or type.
    """

    pixels: np.ndarray
    detail: Detail = "auto"
    digest: bytes = field(init=False)

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError(f"not RGB of 8 bits: {pixels.shape} {pixels.dtype}")
        object.__setattr__(self, "digest", _digest(pixels))

    @property
    def height(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        """In pixels."""
        return int(self.pixels.shape[1])


def _digest(pixels: np.ndarray) -> bytes:
    height, width, _ = pixels.shape
    hashed = hashlib.blake2b(f"{height}x{width}:".encode(), digest_size=32)
    hashed.update(np.ascontiguousarray(pixels).data)
    return hashed.digest()
