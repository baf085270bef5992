"""Tokens of thinking, counted exactly: by their ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol


class ThoughtCounter(Protocol):
    """Counts one answer's tokens of thinking, without their markers.

    may_begin: whether thinking may begin where the answer is now.
    """

    count: int
    may_begin: bool

    def add(self, ids: Iterable[int]) -> None:
        """Take the answer's next tokens."""
        ...


class MarkedThoughts:
    """Counts what stands between two markers.

    Args:
        start, end: token ids of the markers.
        opened: the prompt has the start marker already.
    """

    def __init__(self, start: Sequence[int], end: Sequence[int], opened: bool) -> None:
        self.count = 0
        self.may_begin = True
        self._start, self._end = tuple(start), tuple(end)
        self._is_inside = opened
        self._tail: tuple[int, ...] = ()

    def add(self, ids: Iterable[int]) -> None:
        """Take the answer's next tokens."""
        for token in ids:
            self._take(token)

    def _take(self, token: int) -> None:
        marker = self._end if self._is_inside else self._start
        self._tail = (*self._tail, token)[-len(marker) :]
        self.count += self._is_inside
        if self._tail != marker or not (self._is_inside or self.may_begin):
            return
        # The marker's own tokens were counted while it was not whole.
        self.count -= len(marker) if self._is_inside else 0
        self._is_inside = not self._is_inside
        self._tail = ()


class HarmonyThoughts:
    """Counts the inside of messages in the channel of thinking.

    Args:
        channel, message: ids of the tokens before a channel's name and behind a header.
        borders: ids of the tokens that end a message.
        thinking: ids of the channel's name.
        opened: the prompt has begun such a message already.
    """

    def __init__(
        self,
        channel: int,
        message: int,
        borders: Iterable[int],
        thinking: Sequence[int],
        opened: bool,
    ) -> None:
        self.count = 0
        self.may_begin = True
        self._channel, self._message = channel, message
        self._borders = frozenset(borders)
        self._thinking = list(thinking)
        self._is_inside = opened
        self._name: list[int] | None = None

    def add(self, ids: Iterable[int]) -> None:
        """Take the answer's next tokens."""
        for token in ids:
            self._take(token)

    def _take(self, token: int) -> None:
        if token in self._borders:
            self._is_inside = False
            self._name = [] if token == self._channel else None
        elif token == self._message:
            name = self._name or []
            self._is_inside = name[: len(self._thinking)] == self._thinking
            self._name = None
        elif self._is_inside:
            self.count += 1
        elif self._name is not None:
            self._name.append(token)
