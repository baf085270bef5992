"""Stops a real engine in the middle of an answer, so that what comes then comes then for sure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlx_parallm.engine.engine import Engine
from tests.waiting import PATIENCE_S, wait_until


class Brake:
    """After some steps an engine takes another one only when it is called: once for each call.

    A call is what goes through the engine's inbox: a submission, an abort, `Engine.call`.
    """

    def __init__(self, engine: Engine, steps: int) -> None:
        self._engine = engine
        self._left = steps
        self._launch = engine.runner.launch
        self._stopped, self._released = threading.Event(), threading.Event()
        engine.runner.launch = self._slowly  # type: ignore[method-assign]

    def wait(self) -> None:
        """Until the engine stands."""
        assert self._stopped.wait(PATIENCE_S), "the engine did not take its steps"

    def release(self) -> None:
        """The engine goes on by itself."""
        self._released.set()

    def _slowly(self, begun: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            self._stopped.set()
            wait_until(lambda: self._released.is_set() or not self._engine._inbox._entries.empty())
        return self._launch(begun)


@contextmanager
def braked(engine: Engine, steps: int = 5) -> Iterator[Brake]:
    """See Brake; the engine must be idle at the beginning, and goes on at the end."""
    launch = engine.runner.launch
    brake = Brake(engine, steps)
    try:
        yield brake
    finally:
        brake.release()
        engine.runner.launch = launch  # type: ignore[method-assign]
