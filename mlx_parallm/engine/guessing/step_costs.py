"""StepCosts: how long steps take, by the number of rows and the work for guesses. No mlx here."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

_DECAY = 0.9  # of the running averages
_COLD = 2  # steps that are not counted: the first ones after a change are slower
_HOPED = 0.2  # assumed time of one more guess, over a row's share of a plain step
_HOPED_FREE = 0.05  # the same for a drafter that is free
_PLAIN = -1  # stands for a plain step, in place of a level of work


@dataclass(slots=True)
class _Cost:
    """Running averages of steps' seconds and work, and how often they were measured."""

    seconds: float = 0.0
    work: float = 0.0
    count: int = 0

    @property
    def known(self) -> bool:
        """Whether it was measured twice: the first step of a shape allocates and traces."""
        return self.count >= 2

    def add(self, seconds: float, work: float) -> None:
        self.count += 1
        self.work += max(1 - _DECAY, 1 / self.count) * (work - self.work)
        if self.count <= 3:  # the first ones allocate and trace
            self.seconds = seconds if self.count == 1 else min(self.seconds, seconds)
        else:
            # Slow steps are mostly caused by other processes.
            seconds = min(seconds, 2 * self.seconds)
            self.seconds += (1 - _DECAY) * (seconds - self.seconds)


@dataclass(eq=False)
class StepCosts:
    """Measured times of plain steps, and of guessing ones as a curve over their work.

    Numbers of rows are measured together up to the next power of two.

    Attributes:
        is_free: whether the drafter is; decides what an unmeasured guess is assumed to take.
        work_each: running average of a guessing step's work per row.
    """

    is_free: bool = False
    work_each: float = 2.0
    _costs: dict[tuple[int, int], _Cost] = field(default_factory=dict)
    _run: int = 0  # steps of one kind, guessing or not, since that changed
    _waited: bool = False

    def measured(
        self, size: int, work: float, seconds: float, *, waited: bool, alone: bool
    ) -> None:
        """A step of `size` rows took so long; see LengthController.measured."""
        self._run = self._run + 1 if waited is self._waited else 1
        self._waited = waited
        if not alone or self._run <= _COLD:
            return
        if waited:
            self.work_each += 0.1 * (work / size - self.work_each)
        level = _level(int(work)) if waited else _PLAIN
        self._costs.setdefault((bucket(size), level), _Cost()).add(seconds, work)

    def plain(self, size: int) -> float | None:
        """Seconds of a plain step, None as long as none was measured."""
        cost = self._costs.get((bucket(size), _PLAIN))
        return cost.seconds if cost is not None and cost.known else None

    def knows_guessing(self, size: int) -> bool:
        """Whether guessing steps were measured often enough to be judged."""
        return sum(cost.count for cost in self._waiting(size)) >= 2

    def has_seen_enough(self, size: int) -> bool:
        """Whether the current run of guessing steps is long enough to be measured."""
        return self._waited and self._run > _COLD + 1 and self.knows_guessing(size)

    def guessing(self, size: int, work: np.ndarray, plain: float) -> np.ndarray:
        """Seconds of guessing steps with so much work: interpolated between measured ones,
        and beyond them an optimistic guess. Never falls with more work.

        Args:
            work: (n,), the largest last; plain: seconds of a plain step.
        """
        known = sorted((c.work, c.seconds) for c in self._waiting(size) if c.known)
        if not known or known[0][0] > 0:
            # A step that waits takes a little longer than one that does not.
            known.insert(0, (0.0, min([plain, *(seconds for _, seconds in known)])))
        last, seconds = known[-1]
        beyond = max(0.0, float(work[-1]) - last)
        hoped = (_HOPED_FREE if self.is_free else _HOPED) * plain / size
        known.append((last + beyond, seconds + hoped * beyond))
        numbers, times = np.array(known).T
        return np.asarray(np.interp(work, numbers, times))

    def _waiting(self, size: int) -> list[_Cost]:
        """Costs of guessing steps at this batch size, by level of work."""
        rows = bucket(size)
        return [cost for (b, level), cost in self._costs.items() if b == rows and level != _PLAIN]


def bucket(size: int) -> int:
    """Numbers of rows that are taken together: up to each power of two."""
    return 1 << max(0, size - 1).bit_length()


def _level(work: int) -> int:
    """Amounts of work that are measured together: each up to 4, then by about a third."""
    if work <= 4:
        return work
    power = 1 << (work.bit_length() - 1)
    return power * 3 // 2 if work >= power * 3 // 2 else power
