"""What an engine can be asked to do, as data, so that every rank does it in the same turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.adapters.live import switch_rows
from mlx_parallm.engine.config import EngineConfig
from mlx_parallm.engine.guessing.ngram import NgramDrafter
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.models.loader import LoadedModel


class Doer(Protocol):
    """The engine, as events see it."""

    config: EngineConfig
    loaded: LoadedModel | None
    runner: ModelRunner
    scheduler: ContinuousBatchScheduler

    def add(self, sequences: list[Sequence]) -> None:
        """Let accepted sequences wait for rows."""

    def end(self, ids: list[int]) -> None:
        """End sequences early."""

    def quit(self) -> None:
        """Leave the loop after this turn."""


@dataclass(frozen=True, slots=True)
class Add:
    """Sequences were accepted."""

    sequences: list[Sequence]
    at_rest: bool = False

    def apply(self, engine: Doer) -> None:
        """Let them wait for rows."""
        engine.add(self.sequences)


@dataclass(frozen=True, slots=True)
class Abort:
    """Nobody wants the rest of these sequences."""

    ids: list[int]
    at_rest: bool = False

    def apply(self, engine: Doer) -> None:
        """End them."""
        engine.end(self.ids)


@dataclass(frozen=True, slots=True)
class Quit:
    """The engine is to end."""

    at_rest: bool = False

    def apply(self, engine: Doer) -> None:
        """Leave the loop."""
        engine.quit()


@dataclass(frozen=True, slots=True)
class Configure:
    """Other bounds from the next step on.

    Attributes:
        bounds: fields of SchedulerConfig.
        speculate: set guesses from n-grams up where nothing guesses yet.
        num_draft_tokens: the most to guess; 0 pauses guessing.
    """

    bounds: dict[str, int]
    speculate: bool
    num_draft_tokens: int
    at_rest: bool = False

    def apply(self, engine: Doer) -> None:
        """Change the running engine."""
        if self.speculate and engine.runner.speculation is None:
            engine.runner.speculate(NgramDrafter(), self.num_draft_tokens)
            engine.config = replace(engine.config, speculative="ngram")
        bounds = dict(self.bounds)
        if engine.loaded is not None and engine.loaded.is_encoder:
            bounds.pop("prefill_chunk", None)  # encoders compute whole prompts
        engine.scheduler.configure(**bounds)
        if engine.runner.speculation is not None:
            engine.runner.speculation.limit(self.num_draft_tokens)
            engine.scheduler.configure(lookahead=self.num_draft_tokens)


@dataclass(frozen=True, slots=True)
class Pause:
    """Compute nothing (`paused`), or only sequences that have begun (not `admits`)."""

    paused: bool
    admits: bool
    at_rest: bool = False

    def apply(self, engine: Doer) -> None:
        """Let the scheduler know."""
        engine.scheduler.paused, engine.scheduler.admits = self.paused, self.admits


@dataclass(frozen=True, slots=True)
class ForgetPrefixes:
    """Empty the prefix cache."""

    at_rest: bool = True

    def apply(self, engine: Doer) -> None:
        """Prefixes that a step is about to use stay until it has."""
        if engine.runner.prefixes is not None:
            engine.runner.prefixes.tree.clear()


@dataclass(frozen=True, slots=True)
class SwitchAdapter:
    """Sequences of earlier versions of an adapter go on with a new one; see live.py."""

    new: Adapter
    recompute: bool
    at_rest: bool = True

    def apply(self, engine: Doer) -> int:
        """Switch them; returns how many."""
        return switch_rows(engine.scheduler, engine.runner, self.new, recompute=self.recompute)
