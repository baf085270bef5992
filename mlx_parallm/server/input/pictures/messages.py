"""Pictures in the messages of a chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from mlx_parallm.server.input.content_shape import PICTURE
from mlx_parallm.server.input.pictures.asked import AskedPicture

# What a message says: one text, or texts and pictures in their order.
Said = str | list[str | AskedPicture]


class Spoken(Protocol):
    """A message."""

    @property
    def content(self) -> Said | None:
        """What it says."""


def said_of(parts: Sequence[str | AskedPicture]) -> Said:
    """Texts without pictures between them are one text, a line each."""
    texts = [part for part in parts if isinstance(part, str)]
    return "\n".join(texts) if len(texts) == len(parts) else list(parts)


def pictures_of(messages: Sequence[Spoken]) -> list[AskedPicture]:
    """Those of a chat in their order, each with its place."""
    return [
        part.at(f"messages.{place}.content.{number}.image_url")
        for place, message in enumerate(messages)
        for number, part in enumerate(_parts(message.content))
        if isinstance(part, AskedPicture)
    ]


def text_of(said: Said | None) -> str:
    """What is said without the pictures."""
    return "\n".join(part for part in _parts(said) if isinstance(part, str))


def for_template(said: Said) -> str | list[dict[str, Any]]:
    """As chat templates know it: a text, or parts of which some are pictures."""
    if isinstance(said, str):
        return said
    return [
        {"type": "text", "text": part} if isinstance(part, str) else dict(PICTURE) for part in said
    ]


def _parts(said: Said | None) -> Iterator[str | AskedPicture]:
    if said is not None:
        yield from [said] if isinstance(said, str) else said
