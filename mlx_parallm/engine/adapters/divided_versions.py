"""DividedVersions: the weights of a model that ranks divide. On the engine's thread.

Every rank does the same, told by events: each reads the files itself and makes its part.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlx_parallm.engine.ranks.ranks import Ranks
from mlx_parallm.engine.weights import Weights
from mlx_parallm.errors import InvalidRequestError, ParallmError, UnsupportedError
from mlx_parallm.models.checkpoint.divided import DividedFitting
from mlx_parallm.models.checkpoint.fitting import check_memory
from mlx_parallm.models.device_memory import free_memory
from mlx_parallm.models.loader import DTYPES, LoadedModel

log = logging.getLogger(__name__)
_DIGITS = 15  # of a digest, as a number of 60 bits


@dataclass(slots=True)
class _Begun:
    """A version on its way. `done`: all of it is there."""

    fitting: DividedFitting | None = None
    steps: Iterator[None] = field(default_factory=lambda: iter(()))
    error: Exception | None = None
    done: bool = False


class DividedVersions:
    """This rank's part of each version.

    Args:
        now: the weights as loaded.

    Attributes:
        versions: those that can be used, by number.
    """

    def __init__(self, loaded: LoadedModel, now: Weights, ranks: Ranks) -> None:
        self._loaded, self._ranks = loaded, ranks
        self.versions: dict[int, Weights] = {now.version: now}
        self._as_loaded = now
        self._begun = _Begun()

    def begin(self, paths: list[str], most: int) -> None:
        """Begin to make a version of files; what is wrong with them says `keep`."""
        begun = self._begun = _Begun()
        try:
            self._check_memory()
            begun.fitting = self._new_fitting()
            begun.steps = begun.fitting.steps(paths, most)
        except ParallmError as error:
            begun.error = error

    def advance(self) -> bool:
        """Make a piece more; returns whether there is more to make."""
        begun = self._begun
        try:
            next(begun.steps)
        except StopIteration:
            begun.done = begun.error is None and begun.fitting is not None
            return False
        except Exception as error:  # noqa: BLE001 - every rank has to say how it went
            log.warning("new weights cannot be used: %s", error)
            begun.error = error
            return False
        return True

    def keep(self, version: int) -> Weights:
        """Keep what was made as a version.

        Raises:
            ParallmError: a rank could not make it, or has read other files.
        """
        begun, self._begun = self._begun, _Begun()
        fitting = begun.fitting
        done = bool(self._ranks.agree(int(begun.done)))
        digest = "" if fitting is None else fitting.digest
        number = int(digest[:_DIGITS] or "0", 16)
        same = self._ranks.agree(number) == -self._ranks.agree(-number)
        if not done or fitting is None:
            raise self._refusal(begun.error)
        if not same:
            raise InvalidRequestError(
                "The processes have different files at this path.", param="path"
            )
        made = self.versions[version] = Weights(version, digest, fitting.made)
        return made

    def forget(self, kept: list[int]) -> None:
        """Drop other versions, and what was begun."""
        self._begun = _Begun()
        self.versions = {n: made for n, made in self.versions.items() if n in kept}

    def _refusal(self, error: Exception | None) -> ParallmError:
        if isinstance(error, ParallmError):
            return error
        if error is not None:
            return InvalidRequestError(f"The weights cannot be read: {str(error)[:200]}")
        return InvalidRequestError(
            "Another process could not use these weights; its log says why.", param="path"
        )

    def _new_fitting(self) -> DividedFitting:
        loaded = self._loaded
        if loaded.divided is None or loaded.head is not None:
            with_what = "a classification head" if loaded.head else "--pipeline-parallel"
            raise UnsupportedError(
                f"The weights of a model with {with_what} cannot be replaced.", param="model"
            )
        return DividedFitting(
            loaded.divided.whole,
            loaded.divided.group,
            loaded.model,
            self._as_loaded.parameters,
            DTYPES[loaded.dtype],
            None if loaded.vision is None else loaded.vision.tower,
        )

    def _check_memory(self) -> None:
        """A new version is whole before it takes the place of the one in use."""
        check_memory(self._as_loaded.nbytes, free_memory() // self._ranks.here)
