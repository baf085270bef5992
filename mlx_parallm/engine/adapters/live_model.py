"""What can be changed of a model while it runs: its adapters, and its own weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np

from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.engine.adapters.adapter_pool import AdapterPool
from mlx_parallm.engine.adapters.divided_versions import DividedVersions
from mlx_parallm.engine.adapters.live import switch_weights
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.engine.ranks.events import SwitchAdapter, UseWeights
from mlx_parallm.engine.ranks.ranks import Ranks
from mlx_parallm.engine.ranks.turn import Event
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.weights import Running, Weights
from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.memory.fingerprint import fingerprint_of
from mlx_parallm.models.checkpoint.fitting import Fitting
from mlx_parallm.models.loader import DTYPES, LoadedModel
from mlx_parallm.models.lora.modules import Modules

T = TypeVar("T")
_OUTDATED_MEMORIES = InvalidRequestError(
    "These memories were made before the model's weights were replaced.",
    param="memory.collections",
)


class LiveModel(ABC):
    """The part of an engine that gives a running model other adapters and other weights."""

    loaded: LoadedModel | None
    runner: ModelRunner
    scheduler: ContinuousBatchScheduler
    ranks: Ranks
    _divided_versions: DividedVersions | None = None

    @abstractmethod
    def call(self, function: Callable[[], T], *, at_rest: bool = False) -> Future[T]:
        """Run a function on the engine's thread, between two steps."""

    @abstractmethod
    def enter(self, event: Event) -> Future[Any]:
        """Let the engine do something; all ranks do it between the same two steps."""

    @property
    def can_speculate(self) -> bool:
        """Whether guesses can be taken back: not from recurrent states, and encoders have none."""
        loaded = self.loaded
        return loaded is not None and not (loaded.is_encoder or self.runner.cache.has_state)

    def adapter_modules(self) -> Modules:
        """The model's modules by the names that adapters have for them; any thread may read.

        Raises:
            UnsupportedError: this model takes no adapters.
        """
        return self._adapter_pool.slots.modules

    def prepare_adapter(self, adapter: Adapter) -> list[Callable[[], None]]:
        """Short steps for `call` that copy an adapter's weights to the device; none where that
        was done.

        Raises:
            UnsupportedError: this model takes no adapters.
        """
        pool, base = self._adapter_pool, self.runner.weights.current
        if self.ranks.size > 1:
            return []  # each rank copies its part when the first row needs it
        mine = adapter.on(base.version)
        return [] if mine.slot or mine.prepared is not None else pool.preparing(mine, base)

    def switch_adapter(self, new: Adapter, *, recompute: bool) -> Future[int]:
        """Let running sequences of earlier versions go on with a new one; see live.py."""
        return self.enter(SwitchAdapter(new, recompute))

    @contextmanager
    def using(self, adapter: Adapter | None) -> Iterator[bool]:
        """Let a forward of one row outside of steps compute with an adapter; on the engine's
        thread. Gives False, and no forward may be made, while rows use all slots."""
        slot = 0
        if adapter is not None:
            base = self.weights
            slot = self._adapter_pool.place(adapter.on(base.version), base, self.scheduler.running)
        with self.runner.body.routing.over(np.array([slot])):
            yield adapter is None or slot > 0

    @property
    def weights(self) -> Weights:
        """The model's own, as new sequences get them."""
        return self.runner.weights.current

    def check_replaceable(self) -> None:
        """Refuse other weights for a model whose layers are divided over ranks.

        Raises:
            UnsupportedError: they are.
        """
        if self.ranks.in_stages:
            raise UnsupportedError(
                "The weights of a model cannot be replaced with --pipeline-parallel.",
                param="model",
            )

    def fitting(self) -> Fitting:
        """Makes parameters of this model from uploads; its steps are for `call`.

        Raises:
            UnsupportedError: the model has a head that is no part of it, or several processes.
        """
        loaded = self.loaded
        self.check_replaceable()
        if self.ranks.size > 1:
            raise UnsupportedError(
                "With --tensor-parallel new weights are read by every process: give a path that "
                "all of them have, not the weights themselves.",
                param="path",
            )
        if loaded is None or loaded.head is not None:
            raise UnsupportedError(
                "The weights of a model with a classification head cannot be replaced.",
                param="model",
            )
        tower = None if loaded.vision is None else loaded.vision.tower
        return Fitting(loaded.model, DTYPES[loaded.dtype], self.weights.parameters, tower)

    def put_weights(self, new: Weights, running: Running) -> Future[int]:
        """Make other weights the model's own, between two steps; see live.py."""
        if self.ranks.size > 1:
            return self.enter(UseWeights(new.version, running))
        return self.call(lambda: self.use_weights(new, running), at_rest=True)

    def use_weights(self, new: Weights, running: Running) -> int:
        """See put_weights; on the engine's thread."""
        assert self.loaded is not None
        fingerprint_of(self.loaded)  # as long as it computes with what was loaded
        self.loaded.weights_digest = new.digest
        return switch_weights(self.scheduler, self.runner, new, running)

    @property
    def divided_versions(self) -> DividedVersions:
        """Of the weights that ranks divide; on the engine's thread."""
        if self._divided_versions is None:
            assert self.loaded is not None
            self._divided_versions = DividedVersions(self.loaded, self.weights, self.ranks)
        return self._divided_versions

    @property
    def _adapter_pool(self) -> AdapterPool:
        pool = None if self.loaded is None else self.runner.adapters
        if pool is None:
            raise UnsupportedError("This model takes no adapters.", param="model")
        return pool

    def _bind_memories(self, sequence: Sequence) -> InvalidRequestError | None:
        """Let a sequence with memories compute with the weights that these were made with; an
        error where the model has others by now."""
        if sequence.memory is None:
            return None
        if sequence.memory.weights_digest != self.weights.digest:
            return _OUTDATED_MEMORIES
        sequence.begin_with(self.weights)
        return None
