"""New weights for the whole model, and vLLM's requests for the same."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from mlx_parallm.engine.weights import Running
from mlx_parallm.server.schemas.base import RequestModel

_PATH = "A safetensors file on the server's disk, or a folder with model*.safetensors."
_RUNNING = (
    "Requests that run finish on the weights that they have, or go on with the new ones and keep "
    "their K and V, or compute these again. Those with memories always finish."
)


class PutWeightsRequest(RequestModel):
    """PUT /v1/models/{id}/weights as JSON."""

    path: str = Field(min_length=1, description=_PATH)
    running: Running = Field("finish", description=_RUNNING)


class RollBackWeightsRequest(RequestModel):
    """POST /v1/models/{id}/weights/rollback."""

    version: int | None = Field(None, ge=0, description="None: the one before. 0: as loaded.")
    running: Running = Field("finish", description=_RUNNING)


class InitTransferRequest(RequestModel):
    """vLLM's POST /init_weight_transfer_engine."""

    init_info: dict[str, Any] = Field(
        default_factory=dict, description='Empty, or {"backend": "file"}: weights come as files.'
    )


class StartUpdateRequest(RequestModel):
    """vLLM's POST /start_weight_update."""

    is_checkpoint_format: bool = Field(
        True, description="Both kinds of names are understood, whatever this says."
    )


class UpdateWeightsRequest(RequestModel):
    """POST /update_weights, in prime-rl's and in vLLM's form."""

    weight_dir: str | None = Field(None, min_length=1, description=_PATH)
    update_info: dict[str, Any] | None = Field(None, description='{"weight_dir": PATH}')
    running: Running = Field("keep", description=_RUNNING + " The default is vLLM's way.")


class FinishUpdateRequest(RequestModel):
    """vLLM's POST /finish_weight_update."""

    running: Running = Field("keep", description=_RUNNING)


class WeightsCard(BaseModel):
    """The model's weights. version: 0 as loaded; versions: those that can be rolled back to."""

    object: Literal["weights"]
    model: str
    version: int
    versions: list[int]
    digest: str | None
    bytes: int
    switched: int | None = None


class WeightsMessage(BaseModel):
    """vLLM's answers."""

    message: str


class WeightInfo(BaseModel):
    """vLLM's GET /weight_info."""

    weight_version: str
