"""An answer so far: runs of thinking and text, and calls, in the order in which they were said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from mlx_parallm.server.answer.events import Call, CallLost, CallStart, Event, Reasoning, Text


@dataclass(slots=True)
class Run:
    """Neighbouring pieces of one kind. is_thinking: they are not for the user."""

    is_thinking: bool
    pieces: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """All of it."""
        return "".join(self.pieces)


class Blocks:
    """Gathers the events of one answer."""

    def __init__(self) -> None:
        self.all: list[Run | Call] = []

    def add(self, event: Event) -> None:
        """Take the next event."""
        if isinstance(event, (Text, Reasoning)):
            self._write(event.text, isinstance(event, Reasoning))
        elif isinstance(event, CallStart):
            self.all.append(event.call)
        elif isinstance(event, CallLost):
            self.all.remove(event.call)
            self._write(event.text, False)

    @property
    def text(self) -> str:
        """What is for the user."""
        return "".join(self._pieces(is_thinking=False))

    @property
    def thought(self) -> str:
        """What the model thought."""
        return "".join(self._pieces(is_thinking=True))

    @property
    def calls(self) -> list[Call]:
        """Those that have begun."""
        return [block for block in self.all if isinstance(block, Call)]

    def _pieces(self, is_thinking: bool) -> Iterable[str]:
        for block in self.all:
            if isinstance(block, Run) and block.is_thinking == is_thinking:
                yield from block.pieces

    def _write(self, text: str, is_thinking: bool) -> None:
        last = self.all[-1] if self.all else None
        if not isinstance(last, Run) or last.is_thinking != is_thinking:
            last = Run(is_thinking)
            self.all.append(last)
        last.pieces.append(text)
