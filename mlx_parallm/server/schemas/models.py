"""GET /v1/models and GET /health."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from mlx_parallm.server.schemas.base import RequestModel


class Capabilities(BaseModel):
    """What a model can do.

    vision: it takes pictures; video: and videos; transcription: it writes sounds down.
    """

    vision: bool
    video: bool
    transcription: bool = False


class ModelCard(BaseModel):
    """One model that requests can name. parent: the base model of an adapter.

    bytes: of its weights in memory. It and capabilities: null until the model is loaded.
    """

    model_config = ConfigDict(protected_namespaces=())

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    status: Literal["loading", "ready", "draining", "stopped"]
    type: str
    path_or_hf_id: str
    root: str
    parent: str | None
    max_model_len: int | None
    bytes: int | None
    capabilities: Capabilities | None


class PullRequest(RequestModel):
    """A model to bring onto this machine."""

    model: str = Field(min_length=1, description="As --model-path.")
    revision: str | None = Field(None, description="Branch, tag or commit; pypi: the version.")


class ModelList(BaseModel):
    """Everything served."""

    object: Literal["list"]
    data: list[ModelCard]


class Health(BaseModel):
    """Whether requests are answered now; the reason where they are not."""

    model_config = ConfigDict(protected_namespaces=())

    status: Literal["healthy", "loading", "draining", "stalled", "stopped"]
    model_loaded: bool
    tokenizer_loaded: bool
    scheduler_ready: bool
    reason: str | None = None
