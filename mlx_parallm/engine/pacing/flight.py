"""The Flight: steps that are computing, and which of them has to be read before what."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import mlx.core as mx

from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.engine.plan import Plan
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.engine.step import Launched, Result


class Flight:
    """The steps that are on their way, the oldest first.

    One is, while the next is launched; where ranks compute one after the other, as many as each
    needs to have something to compute.

    Args:
        take: lets sequences have what a step gave.
        send_on: lets clients have it.
    """

    def __init__(
        self,
        runner: ModelRunner,
        scheduler: ContinuousBatchScheduler,
        take: Callable[[list[Result]], None],
        send_on: Callable[[], None],
    ) -> None:
        self._runner = runner
        self._scheduler = scheduler
        self._take = take
        self._send_on = send_on
        self._steps: deque[Launched] = deque()
        self._most = max(1, runner.ranks.stages - 1)

    def __len__(self) -> int:
        return len(self._steps)

    def read_first(self, *, predicts: bool = False) -> int:
        """Read steps whose tokens the next one needs; returns how many tokens it may guess.

        Guesses and grammars need all tokens so far. Where ranks compute one after the other, every
        step needs those of its own rows, which are on the way while other rows are computed.

        Args:
            predicts: plain networks are computed before the next step.
        """
        decoding = self._scheduler.decoding
        if self._runner.ranks.in_stages:
            while self._steps and any(s.in_flight for s in self._scheduler.decoding):
                self._read_oldest()
            return self._runner.guesses(self._scheduler.decoding)
        guesses = self._runner.guesses(decoding)
        first = guesses or self._runner.must_read_first(decoding, predicts)
        if self._steps and (first or self._steps[-1].guessed is not None):
            self.read_all()
        return guesses

    def read_all(self) -> None:
        """Read every step."""
        while self._steps:
            self._read_oldest()

    def launch(self, plan: Plan, guesses: int) -> Launched:
        """Start a step; steps that it waits for are read in between."""
        begun = self._runner.begin(plan, guesses)
        if begun.waits:
            self.read_all()
        tells = self._runner.ranks.in_stages and self._runner.ranks.samples
        if tells:  # other ranks wait for the tokens of these steps, and not for the next one
            for step in self._steps:
                self._runner.read(step)
        launched = self._runner.launch(begun)
        if tells and mx.default_device().type == mx.DeviceType.cpu:
            self._runner.read(launched)  # there, most of it is computed already
        return launched

    def follow(self, launched: Launched | None) -> None:
        """Let a step be on its way, and read the oldest one; without a new one, read one too."""
        if launched is not None:
            self._steps.append(launched)
        if len(self._steps) > (0 if launched is None else self._most):
            self._take(self._runner.collect(self._steps.popleft()))

    def clear(self) -> None:
        """Give up what is on its way."""
        self._steps.clear()

    def _read_oldest(self) -> None:
        """Read a step, and send what it gave on at once: not only when the next is launched."""
        self._take(self._runner.collect(self._steps.popleft()))
        self._send_on()
