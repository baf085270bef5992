"""Who may enter now: decided from the request line alone, before anything is read or computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from starlette.types import Scope

from mlx_parallm.errors import ParallmError, QueueFullError, UnavailableError

# Answered whatever happens: how this server is.
PROBES = frozenset({"/health", "/ping"})
_WHILE_DRAINING = ("/metrics", "/debug/metrics", "/status/")


class Inside(Protocol):
    """What is behind the gate: a ServerState or a Fleet."""

    draining: bool

    @property
    def capacity(self) -> int:
        """Sequences that can be computed or wait at the same time."""
        ...


class Admission:
    """Counts the requests that may end in the engine, and refuses those that cannot get there.

    Args:
        state: gives the server's state; None before it has started.
    """

    def __init__(self, state: Callable[[], Inside | None]) -> None:
        self._state = state
        self._inside = 0

    def refusal(self, scope: Scope) -> ParallmError | None:
        """Why this request is refused at once; None: it may go on."""
        path, state = scope["path"], self._state()
        if path in PROBES:
            return None
        if (full := scope["state"].get("refusal")) is not None:
            return full  # type: ignore[no-any-return]  # of the connection
        if state is None:
            return None
        if state.draining and not path.startswith(_WHILE_DRAINING):
            return UnavailableError("The server is shutting down.")
        if scope["method"] == "POST" and self._inside >= state.capacity:
            # Each that is inside has a sequence at least: there will be no room for this one.
            return QueueFullError("Too many requests are waiting.")
        return None

    @contextmanager
    def entered(self, scope: Scope) -> Iterator[None]:
        """While a request is being answered."""
        counts = scope["method"] == "POST"
        self._inside += counts
        try:
            yield
        finally:
            self._inside -= counts
