"""The scenario that says where a decode step's time goes on the host."""

from __future__ import annotations

import mlx_parallm  # noqa: F401  isort: skip  (puts the fast BLAS in place before mlx)

import cProfile
import pstats
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchlib.scenarios import Bench, Rows, full_steps, ms, scenario
from benchlib.sides import our_engine
from benchlib.work import Timing

_SHOWN = 20


@scenario("profile")
def profile(bench: Bench) -> Rows:
    """A decode step of 32 rows by function; where it waits for the device counts too."""
    rows = bench.size(32, 3)
    with our_engine(bench.folder) as ours:
        tokens, steps = full_steps(bench, ours, rows)
        watch = _Watch(tokens)
        ours.run(bench.work(rows, tokens), on_step=watch.look)
    whole = {"function": "all of a step, without the profiler"}
    return [whole | {"own ms a step": ms(statistics.median(steps))}, *watch.rows()]


@dataclass
class _Watch:
    """Profiles the engine's thread while all rows decode.

    Attributes:
        tokens: that a row generates.
    """

    tokens: int
    profiler: cProfile.Profile = field(default_factory=cProfile.Profile)
    started: int | None = None
    steps: int = 0

    def look(self, timing: Timing) -> None:
        """Called on the engine's thread after each step."""
        made = [len(times) for times in timing.times]
        if self.started is None and min(made) > 0:
            self.started = made[0]
            self.profiler.enable()
        elif self.started is not None and not self.steps and max(made) >= self.tokens:
            self.profiler.disable()
            self.steps = made[0] - self.started

    def rows(self) -> Rows:
        """The functions that took most time themselves."""
        found: dict[Any, Any] = vars(pstats.Stats(self.profiler))["stats"]
        largest = sorted(found.items(), key=lambda item: -item[1][2])[:_SHOWN]
        return [
            {
                "function": f"{Path(file).name}:{line} {name}" if line else name,
                "own ms a step": ms(own / self.steps),
                "with callees": ms(total / self.steps),
                "calls": round(calls / self.steps, 1),
            }
            for (file, line, name), (_, calls, own, total, _) in largest
        ]
