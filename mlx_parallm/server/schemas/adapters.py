"""/v1/adapters, and vLLM's requests for the same."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from mlx_parallm.server.schemas.base import RequestModel

_PATH = "A folder on the server's disk, in PEFT's or mlx-lm's format."


class AddAdapterRequest(RequestModel):
    """POST /v1/adapters."""

    name: str = Field(min_length=1, max_length=200)
    path: str = Field(min_length=1, description=_PATH)
    replace: bool = Field(False, description="Load it as the next version of a known name.")
    running: Literal["finish", "keep", "recompute"] = Field(
        "finish",
        description="Requests that run finish on the version before, or switch and keep their "
        "K and V, or switch and compute them again.",
    )


class RollBackRequest(RequestModel):
    """POST /v1/adapters/{name}/rollback."""

    version: int | None = Field(None, ge=1, description="None: the one before.")


class LoadLoraRequest(RequestModel):
    """vLLM's POST /v1/load_lora_adapter."""

    lora_name: str = Field(min_length=1, max_length=200)
    lora_path: str = Field(min_length=1, description=_PATH)
    base_model_name: str | None = None
    load_inplace: bool = Field(False, description="Replace the adapter of this name.")


class UnloadLoraRequest(RequestModel):
    """vLLM's POST /v1/unload_lora_adapter."""

    lora_name: str = Field(min_length=1, max_length=200)
    lora_int_id: int | None = None


class AdapterCard(BaseModel):
    """One adapter. versions: those that can be rolled back to."""

    id: str
    object: Literal["adapter"]
    created: int
    parent: str
    path: str | None
    version: int | None
    versions: list[int]
    rank: int | None
    bytes: int | None
    digest: str | None
    resident: bool


class AdapterList(BaseModel):
    """All of them."""

    object: Literal["list"]
    max_loras: int
    max_lora_rank: int
    data: list[AdapterCard]


class AdapterDeleted(BaseModel):
    """The answer to DELETE."""

    id: str
    object: Literal["adapter"]
    deleted: bool
