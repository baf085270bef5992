"""What pictures of requests may be."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PictureLimits:
    """count: of one request; num_bytes, num_pixels: of one picture."""

    count: int = 16
    num_bytes: int = 16 * 1024**2
    num_pixels: int = 24_000_000
