"""The rows of each version of the model's weights, apart, since a forward reads one version."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import mlx.core as mx

if TYPE_CHECKING:
    from mlx_parallm.engine.forward.forwards import Forwards
    from mlx_parallm.engine.sequence import Sequence
    from mlx_parallm.engine.weights import Weights


class ForwardsByVersion:
    """Nearly always those of one version; of more while rows finish on earlier ones.

    Args:
        make: forwards without rows.
    """

    def __init__(self, make: Callable[[], Forwards]) -> None:
        self._make = make
        self._by_version: dict[int, Forwards] = {}

    def of(self, weights: Weights | None) -> Forwards:
        """Those of a version; None is as loaded."""
        version = 0 if weights is None else weights.version
        found = self._by_version.get(version)
        # As one step: other threads ask what kind of cache there is.
        return found or self._by_version.setdefault(version, self._make())

    @property
    def all(self) -> list[Forwards]:
        """Of every version."""
        return list(self._by_version.values())

    @property
    def num_rows(self) -> int:
        """Rows that are held."""
        return sum(len(forwards.rows) for forwards in self.all)

    @property
    def arrays(self) -> list[mx.array]:
        """Every buffer of K and V."""
        return [array for forwards in self.all for array in forwards.cache.arrays]

    @property
    def nbytes(self) -> int:
        """Bytes of K and V."""
        return sum(forwards.cache.nbytes for forwards in self.all)

    def move(self, sequences: Items[Sequence], new: Weights) -> None:
        """Their rows, and what these hold, go on with another version."""
        for old in {id(s.weights): s.weights for s in sequences}.values():
            mine = [s for s in sequences if s.weights is old]
            if old is not None and self._all_of(mine, old) and not self.of(new).rows:
                self._by_version[new.version] = self._by_version.pop(old.version)
            else:
                self._move_each(mine, new)

    def _all_of(self, sequences: Items[Sequence], weights: Weights) -> bool:
        return self.of(weights).rows.keys() <= {sequence.id for sequence in sequences}

    def _move_each(self, sequences: Items[Sequence], new: Weights) -> None:
        home = self.of(new)
        for sequence in sequences:
            row = self.of(sequence.weights).rows.pop(sequence.id, None)
            if row is not None:
                home.adopt(sequence, row)

    def forget_empty(self, current: Weights) -> None:
        """Free the caches of earlier versions that no row uses any more."""
        if len(self._by_version) > 1:
            self._by_version = {
                version: forwards
                for version, forwards in self._by_version.items()
                if forwards.rows or version == current.version
            }

    def reset(self) -> None:
        """Forget every row."""
        self._by_version.clear()
