"""The rows of each portion of the batch, apart: a forward computes one of them; see turns.py."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from typing import TYPE_CHECKING

import mlx.core as mx

from mlx_parallm.engine.turns import Portion

if TYPE_CHECKING:
    from mlx_parallm.engine.forward.forwards import Forwards
    from mlx_parallm.engine.sequence import Sequence
    from mlx_parallm.engine.weights import Weights


class ForwardsByVersion:
    """Nearly always those of one portion; of more while rows finish on earlier weights, or where
    there are micro-batches.

    Args:
        make: forwards without rows.
    """

    def __init__(self, make: Callable[[], Forwards]) -> None:
        self._make = make
        self._by_portion: dict[tuple[int, int], Forwards] = {}

    def of(self, portion: Portion) -> Forwards:
        """Those of a portion."""
        found = self._by_portion.get(portion.key)
        # As one step: other threads ask what kind of cache there is.
        return found or self._by_portion.setdefault(portion.key, self._make())

    def of_sequence(self, sequence: Sequence) -> Forwards:
        """Those that have a sequence's row."""
        return self.of(Portion.of(sequence))

    @property
    def all(self) -> list[Forwards]:
        """Of every portion."""
        return list(self._by_portion.values())

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
        for old in {portion.key: portion for portion in map(Portion.of, sequences)}.values():
            mine = [s for s in sequences if Portion.of(s) == old]
            target = Portion(new, old.micro_batch)
            if old.weights is not None and self._all_of(mine, old) and not self.of(target).rows:
                self._by_portion[target.key] = self._by_portion.pop(old.key)
            else:
                for sequence in mine:
                    self.take_over(sequence, old, target)

    def take_over(self, sequence: Sequence, old: Portion, new: Portion) -> None:
        """One row, and what it holds, goes on in another portion."""
        row = self.of(old).rows.pop(sequence.id, None)
        if row is not None:
            self.of(new).adopt(sequence, row)

    def _all_of(self, sequences: Items[Sequence], portion: Portion) -> bool:
        return self.of(portion).rows.keys() <= {sequence.id for sequence in sequences}

    def forget_empty(self, current: Weights) -> None:
        """Free the caches of earlier versions that no row uses any more."""
        if len(self._by_portion) > 1:
            self._by_portion = {
                key: forwards
                for key, forwards in self._by_portion.items()
                if forwards.rows or key[0] == current.version
            }

    def reset(self) -> None:
        """Forget every row."""
        self._by_portion.clear()
