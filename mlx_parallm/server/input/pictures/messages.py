"""Pictures and videos in the messages of a chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from mlx_parallm.server.input.content_shape import PICTURE, VIDEO
from mlx_parallm.server.input.pictures.asked import AskedPicture
from mlx_parallm.server.input.videos.asked import AskedVideo

# What a message says: one text, or texts, pictures and videos in their order.
Part = str | AskedPicture | AskedVideo
Said = str | list[Part]


class Spoken(Protocol):
    """A message."""

    @property
    def content(self) -> Said | None:
        """What it says."""


def said_of(parts: Sequence[Part]) -> Said:
    """Texts without anything to look at between them are one text, a line each."""
    texts = [part for part in parts if isinstance(part, str)]
    return "\n".join(texts) if len(texts) == len(parts) else list(parts)


def pictures_of(messages: Sequence[Spoken]) -> list[AskedPicture | AskedVideo]:
    """Pictures and videos of a chat in their order, each with its place."""
    return [
        part.at(f"messages.{place}.content.{number}.{_field(part)}")
        for place, message in enumerate(messages)
        for number, part in enumerate(_parts(message.content))
        if not isinstance(part, str)
    ]


def _field(part: AskedPicture | AskedVideo) -> str:
    return "video_url" if isinstance(part, AskedVideo) else "image_url"


def text_of(said: Said | None) -> str:
    """What is said without what is to be looked at."""
    return "\n".join(part for part in _parts(said) if isinstance(part, str))


def for_template(said: Said) -> str | list[dict[str, Any]]:
    """As chat templates know it: a text, or parts of which some are pictures and videos."""
    if isinstance(said, str):
        return said
    return [_for_template(part) for part in said]


def _for_template(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return dict(VIDEO if isinstance(part, AskedVideo) else PICTURE)


def _parts(said: Said | None) -> Iterator[Part]:
    if said is not None:
        yield from [said] if isinstance(said, str) else said
