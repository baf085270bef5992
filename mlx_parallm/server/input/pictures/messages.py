"""Pictures in the messages of a chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mlx_parallm.server.input.pictures.asked import AskedPicture

if TYPE_CHECKING:
    from mlx_parallm.server.schemas.chat import ChatMessage

# One text, or texts and pictures in their order.
Said = str | list[str | AskedPicture]


def pictures_of(messages: Sequence[ChatMessage]) -> list[AskedPicture]:
    """Those of a chat in their order, each with its place."""
    return [
        part.at(f"messages.{place}.content.{number}.image_url")
        for place, message in enumerate(messages)
        for number, part in _parts(message.content)
        if isinstance(part, AskedPicture)
    ]


def text_of(said: Said | None) -> str:
    """What is said without the pictures."""
    return "\n".join(part for _, part in _parts(said) if isinstance(part, str))


def for_template(said: Said) -> str | list[dict[str, Any]]:
    """As chat templates know it: a text, or parts of which some are pictures."""
    if isinstance(said, str):
        return said
    return [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
        for part in said
    ]


def _parts(said: Said | None) -> Iterator[tuple[int, str | AskedPicture]]:
    if said is not None:
        yield from enumerate([said] if isinstance(said, str) else said)
