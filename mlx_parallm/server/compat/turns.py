"""Turns of other APIs in the order and shape that chat templates know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mlx_parallm.server.input.pictures.asked import AskedPicture
from mlx_parallm.server.input.pictures.messages import said_of

Turn = dict[str, Any]
# A text, or parts as chats of ours have them, of which some are pictures.
Content = str | list[Any]

_SYSTEM_ROLES = ("system", "developer")


def in_order(turns: Iterable[Turn]) -> Iterator[Turn]:
    """The system's texts before the first turn as one, later ones as the user's; neighbouring
    texts of the user as one turn.

    Templates have the system's message only at the beginning, and many want roles to take turns.
    """
    system: list[str] = []
    waiting: Turn | None = None
    for turn in turns:
        if turn["role"] in _SYSTEM_ROLES:
            if waiting is None:
                system.append(turn["content"])
                continue
            turn = {**turn, "role": "user"}
        if waiting is None:
            if system:
                yield {"role": "system", "content": "\n".join(system)}
        elif waiting["role"] == turn["role"] == "user":
            waiting = {**waiting, "content": _both(waiting["content"], turn["content"])}
            continue
        else:
            yield waiting
        waiting = turn
    if waiting is not None:
        yield waiting
    elif system:
        yield {"role": "system", "content": "\n".join(system)}


def content_of(parts: Sequence[str | AskedPicture]) -> Content:
    """Texts, a line each; or parts where there are pictures."""
    said = said_of(parts)
    return said if isinstance(said, str) else _as_parts(said)


def _both(first: Content, second: Content) -> Content:
    if isinstance(first, str) and isinstance(second, str):
        return f"{first}\n{second}"
    return [*_as_parts(first), *_as_parts(second)]


def _as_parts(content: Any) -> list[Any]:
    parts = [content] if isinstance(content, str) else content
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
