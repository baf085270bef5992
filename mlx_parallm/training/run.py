"""A Run: a trainer with its progress bar, its logs and its plot."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm

from mlx_parallm.engine.engine import Engine
from mlx_parallm.errors import TrainingError
from mlx_parallm.training import checkpoint, plot
from mlx_parallm.training.csv_log import CsvLog
from mlx_parallm.training.event_file import EventFile
from mlx_parallm.training.rewards import load_reward
from mlx_parallm.training.settings import TrainSettings
from mlx_parallm.training.start import read_dataset
from mlx_parallm.training.trainer import StepResult, Trainer
from mlx_parallm.training.versions import Versions

_EVENTS = "tensorboard"


def prepare(settings: TrainSettings) -> None:
    """What can be wrong before a model is loaded.

    Raises:
        TrainingError: a reward or the output folder cannot be used.
    """
    for spec in settings.rewards:
        load_reward(spec)
    try:
        settings.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(
            f"{settings.output}: {error.strerror or error}", param="output"
        ) from None
    if checkpoint.has_any(settings.output) and not settings.resume:
        raise TrainingError(
            f"{settings.output} holds a run already; --resume goes on with it.", param="output"
        )


class Run:
    """One training, from its start or a checkpoint to its end.

    Args:
        engine, twin, versions: as Trainer takes them.
    """

    def __init__(
        self, settings: TrainSettings, engine: Engine, twin: Any, versions: Versions
    ) -> None:
        self._settings = settings
        self._meter = _Meter()
        rewards = [load_reward(spec) for spec in settings.rewards]
        dataset = read_dataset(settings, engine)
        self.trainer = Trainer(
            settings, engine, twin, versions, dataset, rewards, self._meter.count
        )
        self._csv = CsvLog(settings.output, self.trainer.step)
        self._events = EventFile(settings.output / _EVENTS)

    def train(self, *, quiet: bool = False) -> int:
        """Train to the end, or until Ctrl-C; returns the steps that are done.

        Raises:
            TrainingError: it cannot go on.
        """
        done, steps = self.trainer.step, self._settings.steps
        with (
            tqdm(total=steps, initial=done, unit="step", disable=quiet) as bar,
            _stops(self.trainer.stop),
        ):
            self._meter.bar = bar
            try:
                self.trainer.run(lambda result: self._report(result, bar))
            finally:
                self._events.close()
        if plot.draw(self._settings.output) is None:
            sys.stderr.write('no plot: it needs matplotlib; pip install "mlx_parallm[train]"\n')
        return self.trainer.step

    def _report(self, result: StepResult, bar: tqdm[Any]) -> None:
        values = result.values | self._meter.take()
        self._csv.write(result.step, values)
        self._events.write(result.step, values)
        self._meter.reward = values["reward"]
        bar.update()


class _Meter:
    """Counts sampled tokens, and shows the speed."""

    def __init__(self) -> None:
        self.bar: tqdm[Any] | None = None
        self.reward: float | None = None
        self._tokens = 0
        self._began = time.perf_counter()

    def count(self, tokens: int) -> None:
        """Some more."""
        self._tokens += tokens
        if self.bar is not None:
            reward = "" if self.reward is None else f"reward {self.reward:.2f}, "
            self.bar.set_postfix_str(f"{reward}{self._speed():.0f} tokens/s", refresh=False)

    def take(self) -> dict[str, float]:
        """The speed since the last call, all of a step's time counted."""
        speed = self._speed()
        self._tokens, self._began = 0, time.perf_counter()
        return {"tokens_per_s": speed}

    def _speed(self) -> float:
        return self._tokens / max(time.perf_counter() - self._began, 1e-9)


@contextmanager
def _stops(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set `stop`; a second one is a KeyboardInterrupt."""

    def leave(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        sys.stderr.write("\nstopping after this step; once more stops now\n")

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what signals do
        return
    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
