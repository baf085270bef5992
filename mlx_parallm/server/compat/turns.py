"""Turns of other APIs in the order and shape that chat templates know."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

Turn = dict[str, Any]

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
            waiting = {**waiting, "content": f"{waiting['content']}\n{turn['content']}"}
            continue
        else:
            yield waiting
        waiting = turn
    if waiting is not None:
        yield waiting
    elif system:
        yield {"role": "system", "content": "\n".join(system)}
