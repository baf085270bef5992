"""A Prediction: rows of numbers for a plain network, in place of tokens. No mlx here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(eq=False, slots=True)
class Prediction:
    """What a sequence carries that is computed by a plain network.

    Its rows go through the network side by side, one time step after the other; an MLP has one.

    Attributes:
        network: its name.
        rows: (T, input_size) float32 each, with any T.
        cost: of one time step of all rows, in tokens of the model: what its client is charged.
        states: what a recurrent network keeps of each row, (rows, layers, 2, hidden_size); None
            before the first step.
    """

    network: str
    rows: list[np.ndarray]
    cost: float = 0.0
    states: np.ndarray | None = None

    @property
    def num_steps(self) -> int:
        """Time steps of the longest row."""
        return max(map(len, self.rows))
