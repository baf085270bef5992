"""What an answer consists of, in the order in which it is said."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(slots=True, eq=False)
class Call:
    """A call of a tool.

    Attributes:
        arguments: a text that holds a JSON object, once the call is whole.
    """

    name: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """More of the text for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """More of what the model thinks."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call whose name is known."""

    call: Call


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments."""

    call: Call
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is whole."""

    call: Call


@dataclass(frozen=True, slots=True)
class CallLost:
    """A call that had begun is none.

    text: all that was written of it, markers included; it is text of the answer. A stream has
    shown it as arguments already.
    """

    call: Call
    text: str


Event = Text | Reasoning | CallStart | CallArguments | CallEnd | CallLost


class Reader(Protocol):
    """Reads one answer."""

    def feed(self, text: str) -> list[Event]:
        """What more text brings; what may yet become a marker is held back."""
        ...

    def finish(self, cut: bool = False) -> list[Event]:
        """What is left when the answer has ended; cut: in the middle, by its length."""
        ...


def merged(events: list[Event]) -> list[Event]:
    """The same with neighbouring pieces of one kind put together, and without empty ones."""
    kept: list[Event] = []
    for event in events:
        if isinstance(event, (Text, Reasoning)):
            last = kept[-1] if kept else None
            if not event.text:
                continue
            if isinstance(last, Text) and isinstance(event, Text):
                kept[-1] = Text(last.text + event.text)
                continue
            if isinstance(last, Reasoning) and isinstance(event, Reasoning):
                kept[-1] = Reasoning(last.text + event.text)
                continue
        kept.append(event)
    return kept


def held(text: str, *markers: str) -> int:
    """How many letters at the end of a text may be the beginning of a marker."""
    longest = 0
    for marker in markers:
        sizes = range(min(len(marker) - 1, len(text)), longest, -1)
        longest = next((size for size in sizes if text.endswith(marker[:size])), longest)
    return longest
