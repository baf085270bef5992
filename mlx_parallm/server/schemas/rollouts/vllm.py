"""vLLM's token-in, token-out requests: /inference/v1/generate, and /generate of its api_server.

Verifiers and prime-rl send the first, atropos the second.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema, model_validator

from mlx_parallm.server.schemas.base import (
    CacheSalt,
    FalseOnly,
    RequestModel,
    Unsupported,
    unsupported,
    wrong,
)
from mlx_parallm.server.schemas.completions import IDS_SCHEMA, CompletionRequest, prompt_list
from mlx_parallm.server.schemas.sampling import StreamOptions, TokenId


class TokenGenerateRequest(RequestModel):
    """One prompt of token ids."""

    request_id: str | None = Field(None, min_length=1, max_length=256)
    model: str = Field("", description="A name from /v1/models; empty means the served model.")
    token_ids: list[TokenId] = Field(min_length=1)
    sampling_params: dict[str, Any] = Field(
        description="vLLM's SamplingParams: what /v1/completions has of them, and logprobs_mode."
    )
    return_token_ids: bool = Field(False, description="prompt_token_ids too.")
    output_mode: Literal["tokens", "text"] = Field("tokens", description="text: with its text.")
    stream: bool = False
    stream_options: StreamOptions | None = Field(None, description="Only with stream.")
    cache_salt: CacheSalt = None
    priority: int = Field(0, ge=-(2**63), le=2**63 - 1, description="Lower is served first.")
    token_offsets: list[Any] | None = Field(None, description="Accepted; has no effect.")

    features: Unsupported = None
    content_parts: Unsupported = None
    kv_transfer_params: Unsupported = None
    ec_transfer_params: Unsupported = None
    reasoning_ended: Unsupported = None
    reasoning_parser_kwargs: Unsupported = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options is only allowed when stream is true", "stream_options")
        return self


def _tokens_prompt(value: Any) -> list[str | list[int]]:
    """{"prompt_token_ids": [...]}, {"prompt": "..."}, or a plain prompt."""
    if not isinstance(value, dict):
        return prompt_list(value)
    extra = sorted(set(value) - {"prompt", "prompt_token_ids"})
    if extra:
        raise unsupported("this is not supported here", extra[0][:100])
    ids = value.get("prompt_token_ids")
    if ids is None:
        return prompt_list(value.get("prompt"))
    if not isinstance(ids, list):
        raise wrong("expected a list of token ids", "prompt_token_ids")
    return prompt_list([ids])


class VllmGenerateRequest(CompletionRequest):
    """A prompt, and vLLM's SamplingParams beside it."""

    prompt: Annotated[
        list[str | list[int]],
        PlainValidator(_tokens_prompt),
        WithJsonSchema(
            {
                "type": "object",
                "properties": {"prompt_token_ids": IDS_SCHEMA},
                "required": ["prompt_token_ids"],
                "additionalProperties": False,
            }
        ),
    ] = Field(description="{prompt_token_ids}, {prompt}, or what /v1/completions takes.")
    stream: FalseOnly = False
    best_of: Unsupported = None
    echo: FalseOnly = False

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if len(self.prompt) > 1:
            raise wrong("only one prompt is answered; use n, or /v1/completions", "prompt")
        return self


class VllmGenerateResponse(BaseModel):
    """The answer to it; log-probabilities are {id: value}, the sampled token's first."""

    text: list[str]
    prompt: str
    finish_reasons: list[Literal["stop", "length"]]
    prompt_token_ids: list[int]
    token_ids: list[list[int]]
    logprobs: list[list[list[dict[str, float]]]] | None = None
    prompt_logprobs: list[dict[str, float] | None] | None = None
    weight_versions: list[list[int]] | None = None
