"""What both formats need before an adapter is written."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlx_parallm.errors import UnsupportedError
from mlx_parallm.models.lora.delta import HEAD, Delta


def check_low_rank_only(deltas: Mapping[str, Delta]) -> None:
    """Refuse what only one of the formats has.

    Raises:
        UnsupportedError: whole parameters or biases are changed.
    """
    for path, delta in deltas.items():
        if delta.replaced or delta.added is not None or delta.b is None:
            raise UnsupportedError(
                f"{path.removesuffix(HEAD)}: whole parameters and biases cannot be converted; "
                "mlx_parallm_merge_lora can put them into the model."
            )


def widened(delta: Delta, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """A, (..., in, rank), and B, (..., rank, out), with zeros behind the delta's own rank."""
    assert delta.a is not None and delta.b is not None
    missing = rank - delta.rank
    before = [(0, 0)] * (delta.a.ndim - 2)
    a = np.pad(delta.a, [*before, (0, 0), (0, missing)])
    b = np.pad(delta.b, [*before, (0, missing), (0, 0)])
    return a, b
