"""The NetworkLine: which predictions a step computes, and how far. No mlx here.

They need no row of the batch, so that they wait in a line of their own; whose turn it is says the
same account of what every client was served. A step may take as long for them as running rows can
wait (`--max-gap`), half of it where prompts wait too.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from mlx_parallm.engine.client import Client
from mlx_parallm.engine.fairness import Shares
from mlx_parallm.engine.networks.prediction import Prediction
from mlx_parallm.engine.networks.step_cost import StepCost
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.waiting_line import WaitingLine

_IDLE_S = 0.03  # of a step in which no row decodes: how long whoever comes then waits
_LEAST_S = 0.001  # beside decoding rows, or a long series would never end
_FIRST_STEPS = 16  # time steps of a network that was not measured yet
Planned = list[tuple[Sequence, int]]


class NetworkLine:
    """Predictions that wait for their next steps.

    Attributes:
        spare: seconds that rows can wait, by how many decode; None where that is not bounded.
    """

    def __init__(self, shares: Shares) -> None:
        self.spare: Callable[[int], float | None] = lambda decoding: None
        self._shares = shares
        self._line = WaitingLine(shares)
        self._costs: dict[str, StepCost] = {}

    @property
    def clients(self) -> list[Client | None]:
        """Those with predictions."""
        return self._line.clients

    @property
    def has_work(self) -> bool:
        """Whether a prediction waits."""
        return self._line.peek() is not None

    def push(self, sequence: Sequence) -> None:
        """Let a prediction wait for its next steps."""
        self._line.push(sequence)

    def measured(self, network: str, rows: int, seconds: float) -> None:
        """So many rows of a network took so long for each time step."""
        self._costs.setdefault(network, StepCost()).measured(rows, seconds)

    def plan(self, decoding: int, behind: int) -> tuple[Planned, float]:
        """Take the next steps of as many predictions as a step has time for, at least of one.

        Args:
            decoding: rows that wait for their next token meanwhile.
            behind: rows that wait for their prompts.

        Returns:
            (sequence, its time steps), and the seconds that they take together.
        """
        spare = self.spare(decoding) if decoding else None
        most = _IDLE_S if spare is None else max(_LEAST_S, spare)
        most = most / 2 if behind else most
        chosen, each = self._choose(most)
        steps = max(1, int(most / each)) if each else _FIRST_STEPS
        planned = [(s, min(steps, s.num_pending - 1)) for s in chosen]
        rows = _rows(chosen)
        for sequence, count in planned:
            sequence.ledger.rows += rows[prediction_of(sequence).network]
            self._note(sequence, count)
        longest = max((count for _, count in planned), default=0)
        return planned, each * longest

    def _choose(self, most: float) -> tuple[list[Sequence], float]:
        """Whose turn it is, and the seconds of one time step of all of them."""
        chosen: list[Sequence] = []
        rows: Counter[str] = Counter()
        total = 0.0
        while (sequence := self._line.peek()) is not None:
            name, count = prediction_of(sequence).network, len(prediction_of(sequence).rows)
            before, after = self._seconds(name, rows[name]), self._seconds(name, rows[name] + count)
            if chosen and (after is None or total + after - (before or 0.0) > most):
                break
            self._line.pop()
            chosen.append(sequence)
            rows[name] += count
            total += (after or 0.0) - (before or 0.0)
            self._shares.charge_prompt(sequence.client, prediction_of(sequence).cost)
            if after is None:
                return chosen, 0.0  # alone: how long it takes is to be seen
        return chosen, total

    def _seconds(self, network: str, rows: int) -> float | None:
        cost = self._costs.get(network)
        if not rows:
            return 0.0
        return None if cost is None else cost.seconds(rows)

    def _note(self, sequence: Sequence, count: int) -> None:
        """Count its steps as computed; what is left waits again."""
        sequence.begun = sequence.begun or time.perf_counter()
        sequence.ledger.steps += 1
        sequence.num_computed += count
        self._shares.charge_prompt(sequence.client, prediction_of(sequence).cost * (count - 1))
        if sequence.num_pending > 1:
            self._line.push(sequence)


def _rows(sequences: list[Sequence]) -> Counter[str]:
    """How many rows each network computes."""
    rows: Counter[str] = Counter()
    for sequence in sequences:
        rows[prediction_of(sequence).network] += len(prediction_of(sequence).rows)
    return rows


def prediction_of(sequence: Sequence) -> Prediction:
    """What a sequence of a plain network carries."""
    assert sequence.prediction is not None
    return sequence.prediction
