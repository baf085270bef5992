"""What an engine can be asked to do, as data, so that every rank does it in the same turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.adapters.divided_versions import DividedVersions
from mlx_parallm.engine.adapters.live import switch_rows
from mlx_parallm.engine.config import EngineConfig
from mlx_parallm.engine.guessing.ngram import NgramDrafter
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.weights import Running, Weights
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

    @property
    def divided_versions(self) -> DividedVersions:
        """Of the weights that ranks divide."""

    def use_weights(self, new: Weights, running: Running) -> int:
        """Make other weights the model's own."""


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
class BeginWeights:
    """Make new weights of files that every rank has; see DividedVersions.

    Attributes:
        paths: files, or folders of them. most: bytes that one of these may have.
    """

    paths: list[str]
    most: int
    at_rest: bool = False

    def apply(self, engine: Doer) -> None:
        """Forget what was begun before."""
        engine.divided_versions.begin(self.paths, self.most)


@dataclass(frozen=True, slots=True)
class MakeWeights:
    """A piece of what was begun."""

    at_rest: bool = False

    def apply(self, engine: Doer) -> bool:
        """Returns whether there is more to make."""
        return engine.divided_versions.advance()


@dataclass(frozen=True, slots=True)
class KeepWeights:
    """What was made is a version of the weights, if all ranks have made it."""

    version: int
    at_rest: bool = False

    def apply(self, engine: Doer) -> Weights:
        """Keep it; returns this rank's part."""
        return engine.divided_versions.keep(self.version)


@dataclass(frozen=True, slots=True)
class ForgetWeights:
    """Only these versions of the weights can be used again."""

    kept: list[int]
    at_rest: bool = False

    def apply(self, engine: Doer) -> None:
        """Drop the others, and what was begun."""
        engine.divided_versions.forget(self.kept)


@dataclass(frozen=True, slots=True)
class UseWeights:
    """A version of the weights is the model's from now on; see live.py."""

    version: int
    running: Running
    at_rest: bool = True

    def apply(self, engine: Doer) -> int:
        """Returns how many sequences that had begun go on with it."""
        return engine.use_weights(engine.divided_versions.versions[self.version], self.running)


@dataclass(frozen=True, slots=True)
class SwitchAdapter:
    """Sequences of earlier versions of an adapter go on with a new one; see live.py."""

    new: Adapter
    recompute: bool
    at_rest: bool = True

    def apply(self, engine: Doer) -> int:
        """Switch them; returns how many."""
        return switch_rows(engine.scheduler, engine.runner, self.new, recompute=self.recompute)
