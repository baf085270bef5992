"""A Client: somebody whose sequences share the batch with others'."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """`weight` is its part of the batch where several want more than there is."""

    name: str
    weight: float = 1.0
