"""How far a download or the reading of weights is: bars on a terminal, figures for who asks."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from tqdm import tqdm


class StoppedError(Exception):
    """Raised in what reports progress, once nobody waits for it any more."""


@dataclass(slots=True)
class LoadProgress:
    """How far one model is on its way; read by other threads.

    Attributes:
        step: what is being done; "" before it begins, and where it tells nothing.
        completed, total: bytes.
        stopped: whoever reports next is to end.
    """

    step: Literal["", "downloading", "reading"] = ""
    completed: int = 0
    total: int = 0
    stopped: bool = False

    def tell(self, step: Literal["downloading", "reading"], completed: int, total: int) -> None:
        """Say how far it is.

        Raises:
            StoppedError: it is to end.
        """
        if self.stopped:
            raise StoppedError
        self.step, self.completed, self.total = step, completed, total


# Told by downloads and loads that begin in this context.
watcher: ContextVar[LoadProgress | None] = ContextVar("watcher", default=None)


class Bars:
    """Progress by file and in all; where there is no terminal, one line at the start.

    Args:
        title: of the bar for all; sizes: bytes of each file.
    """

    def __init__(self, title: str, sizes: Mapping[str, int]) -> None:
        self._sizes = sizes
        self._hidden = not sys.stderr.isatty() or are_progress_bars_disabled()
        self._total = self._bar(title, sum(sizes.values()), position=0)
        self._lock = threading.Lock()
        self._open: dict[str, Any] = {}
        self._stopped = False
        self._watch = watcher.get()
        self._done = 0
        if self._hidden:
            size = sum(sizes.values()) / 1e6
            sys.stderr.write(f"downloading {title}: {len(sizes)} files, {size:.1f} MB\n")

    def stop(self) -> None:
        """Whoever reports progress from now on is to end."""
        self._stopped = True

    def of(self, name: str) -> Callable[[int], None]:
        """What is told of the bytes of one file."""

        def update(count: int) -> None:
            if self._stopped:
                raise StoppedError
            with self._lock:
                bar = self._open.get(name)
                if bar is None:
                    bar = self._open[name] = self._bar(name, self._sizes[name], position=None)
                bar.update(count)
                self._total.update(count)
                self._done += count
                if self._watch is not None:
                    self._watch.tell("downloading", self._done, sum(self._sizes.values()))
                if bar.n >= self._sizes[name]:
                    bar.close()

        return update

    def _bar(self, title: str, size: int, position: int | None) -> Any:
        return tqdm(
            desc=title[-40:],
            total=size,
            unit="B",
            unit_scale=True,
            position=position,
            leave=position == 0,
            disable=self._hidden,
        )

    def __enter__(self) -> Bars:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for bar in self._open.values():
            bar.close()
        self._total.close()

    @staticmethod
    @contextmanager
    def silent() -> Iterator[None]:
        """huggingface_hub's own bars are off inside."""
        shown = not are_progress_bars_disabled()
        disable_progress_bars()
        try:
            yield
        finally:
            if shown:
                enable_progress_bars()
