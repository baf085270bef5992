"""POST /v1/configure: the same options in a query and in a JSON body."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from mlx_parallm.server.schemas.base import RequestModel


class ConfigureFields(BaseModel):
    """What of a running engine can be changed; None leaves it as it is."""

    use_speculative_decoding: bool | None = Field(
        None, description="Guess ahead; where nothing was set up at start, from n-grams."
    )
    max_batch_size: int | None = Field(None, ge=1, le=4096)
    max_draft_tokens: int | None = Field(None, ge=1, le=32)
    prefill_chunk: int | None = Field(None, ge=1, le=512)
    batch_timeout_ms: float | None = Field(None, ge=0, le=10_000, allow_inf_nan=False)


class ConfigureQuery(ConfigureFields):
    """The options as query parameters."""

    model_config = ConfigDict(extra="forbid")


class ConfigureRequest(ConfigureFields, RequestModel):
    """The options as a JSON body."""
