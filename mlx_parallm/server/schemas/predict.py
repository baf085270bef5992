"""POST /v1/predict."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mlx_parallm.server.schemas.base import RequestModel
from mlx_parallm.server.schemas.sampling import MAX_SEQUENCES

MAX_STEPS = 512

# What float32 holds.
_Number = Annotated[float, Field(ge=-3e38, le=3e38)]
_Row = Annotated[list[_Number], Field(min_length=1)]
_Steps = Annotated[list[_Row], Field(min_length=1, max_length=MAX_STEPS)]


class PredictRequest(RequestModel):
    """Numbers for a plain network."""

    model: str = Field("", description="The network's name; empty where there is only one.")
    inputs: list[_Row] | list[_Steps] = Field(
        min_length=1,
        max_length=MAX_SEQUENCES,
        description="A list of numbers for each row of an MLP; a list of steps, each a list "
        "of numbers, for each row of an LSTM.",
    )
    user: str = Field("", description="Accepted; has no effect.")
    priority: int = Field(0, ge=-(2**63), le=2**63 - 1, description="Lower is served first.")
    receipt: bool = Field(
        False, description="How long it waited, and beside how many rows it was computed."
    )
