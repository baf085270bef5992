"""Measurements on their way to what is decided by them. No mlx here.

One process believes them at once. With several ranks only rank 0 measures, and all of them
believe it at the beginning of the next turn: else each would plan other steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["step", "guessing", "catching_up", "network"]


@dataclass(frozen=True, slots=True)
class Measured:
    """One measurement: the arguments of whoever takes in this kind."""

    kind: Kind
    arguments: tuple[Any, ...]
    more: dict[str, Any] = field(default_factory=dict)


class Measurements:
    """Passes measurements on.

    Attributes:
        takers: who takes in which kind.
        kept: for the next turn, where they are not believed at once; None where they are.
        measures: False where another rank measures.
    """

    def __init__(self) -> None:
        self.takers: dict[str, Callable[..., None]] = {}
        self.kept: list[Measured] | None = None
        self.measures = True

    def note(self, kind: Kind, *arguments: Any, **more: Any) -> None:
        """Something was measured."""
        if not self.measures:
            return
        measured = Measured(kind, arguments, more)
        if self.kept is None:
            self.believe([measured])
        else:
            self.kept.append(measured)

    def take(self) -> list[Measured]:
        """What was kept since the last time."""
        kept, self.kept = self.kept or [], []
        return kept

    def believe(self, measured: list[Measured]) -> None:
        """Let those know who decide by it."""
        for one in measured:
            taker = self.takers.get(one.kind)
            if taker is not None:
                taker(*one.arguments, **one.more)
