"""Our side of an engine benchmark."""

from __future__ import annotations

import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx

from benchlib.work import Timing, Work
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import Output, SamplingParams
from mlx_parallm.engine.sequence import Sequence as Row
from mlx_parallm.models.loader import load_model

__all__ = ["OurEngine", "Timing", "Work", "our_engine", "to_row"]


class OurEngine:
    """This project's engine, in a thread of its own."""

    name = "mlx_parallm"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run(
        self,
        work: Sequence[Work],
        clients: int | None = None,
        on_step: Callable[[Timing], None] | None = None,
        late: Sequence[tuple[int, Work]] = (),
    ) -> Timing:
        """Generate everything.

        Args:
            clients: so many at once, the next one when one ends; default all at once.
            on_step: called on the engine's thread after each step.
            late: (n, work): submitted when work 0 has n tokens; timed behind the others.
        """
        return _OurRun(self.engine, work, on_step, late).run(clients or len(work))


class _OurRun:
    """One run: a sink that keeps times and submits what is due."""

    def __init__(
        self,
        engine: Engine,
        work: Sequence[Work],
        on_step: Callable[[Timing], None] | None,
        late: Sequence[tuple[int, Work]],
    ) -> None:
        self.engine = engine
        everything = [*work, *(piece for _, piece in late)]
        self.rows = [to_row(piece) for piece in everything]
        self.place = {row.id: index for index, row in enumerate(self.rows)}
        self.timing = Timing([[] for _ in everything])
        self.on_step = on_step
        self.waiting = iter(self.rows[: len(work)])
        self.late = [(due, row) for (due, _), row in zip(late, self.rows[len(work) :], strict=True)]
        self.left = len(everything)
        self.done = threading.Event()
        self.failure: Exception | None = None
        self.started = 0.0

    def run(self, clients: int) -> Timing:
        self.engine.call(mx.reset_peak_memory).result()
        self.started = time.perf_counter()
        self.engine.submit(list(itertools.islice(self.waiting, clients)), self._sink)
        self.done.wait()
        if self.failure is not None:
            raise self.failure
        self.timing.peak_bytes = self.engine.call(mx.get_peak_memory).result()
        return self.timing

    def _sink(self, outputs: list[Output]) -> None:
        now = time.perf_counter() - self.started
        try:
            ended = sum(self._take(output, now) for output in outputs)
            due = list(itertools.islice(self.waiting, ended)) + self._due()
            if due:
                self.engine.submit(due, self._sink)
            if self.on_step is not None:
                self.on_step(self.timing)
            self.left -= ended
        except Exception as error:  # noqa: BLE001  raised again by run(), where it is seen
            self.failure = error
        if self.left == 0 or self.failure is not None:
            self.done.set()

    def _take(self, output: Output, now: float) -> bool:
        index = self.place[output.sequence_id]
        self.timing.times[index] += [now] * len(output.token_ids)
        if output.error is not None:
            raise output.error
        if output.finish_reason is None:
            return False
        self.timing.finished += len(self.timing.times[index]) == self.rows[index].params.max_tokens
        return True

    def _due(self) -> list[Row]:
        have = len(self.timing.times[0])
        due = [row for when, row in self.late if when <= have]
        self.late = [(when, row) for when, row in self.late if when > have]
        return due


def to_row(work: Work) -> Row:
    """The engine's form of a piece of work."""
    settings: dict[str, Any] = {"temperature": 0, "ignore_eos": True, **work.sampling}
    return Row(list(work.prompt), SamplingParams(max_tokens=work.tokens, **settings))


@contextlib.contextmanager
def our_engine(folder: Path, **config: Any) -> Iterator[OurEngine]:
    """A started engine on the model in a folder; `config` are fields of EngineConfig."""
    engine = Engine(lambda: load_model(str(folder)), EngineConfig(**config))
    engine.start()
    try:
        engine.wait_ready(120)
        yield OurEngine(engine)
    finally:
        engine.stop()
