"""POST /generate, /v1/generate, /v1/generate_batch and what answers them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from mlx_parallm.server.schemas.base import MAX_TOKEN_ID, wrong
from mlx_parallm.server.schemas.sampling import MAX_SEQUENCES, SamplingFields

_One = Literal[1]
DEFAULT_CANDIDATES = 10
MAX_CANDIDATES = 1000


class GenerateFields(SamplingFields):
    """What the generate endpoints share: one answer a prompt."""

    n: _One = 1
    prompt_logprobs: Annotated[None, Field(description="Use /v1/completions.")] = None
    max_tokens: int = Field(100, ge=1, le=MAX_TOKEN_ID)
    temperature: float = Field(0.7, ge=0, le=2, description="0 takes the likeliest token.")


class GenerateRequest(GenerateFields):
    """One prompt, answered with every figure that was measured on the way."""

    prompt: str
    max_tokens: int = Field(
        50, ge=1, le=MAX_TOKEN_ID, description="At least 1; with the prompt within the context."
    )
    repetition_penalty: float = Field(
        1.0, gt=0, le=10, description="Over 0, up to 10; 1 is none. Logits are divided by it."
    )
    include_top_k_candidates: bool = Field(
        False,
        description=f"Each step's likeliest tokens: top_k of them, {DEFAULT_CANDIDATES} "
        f"without top_k, and at most {MAX_CANDIDATES}.",
    )

    @model_validator(mode="after")
    def _few_candidates(self) -> Self:
        if self.include_top_k_candidates and self.top_k > MAX_CANDIDATES:
            raise wrong(f"at most {MAX_CANDIDATES} candidates a step are shown", "top_k")
        return self


class EngineGenerateRequest(GenerateFields):
    """One prompt."""

    prompt: str


class GenerateBatchRequest(GenerateFields):
    """Several prompts with the same settings."""

    prompts: list[str] = Field(min_length=1, max_length=MAX_SEQUENCES)
    stream: Literal[False] = False


class GenerateResponse(BaseModel):
    """The answer of /generate. Times in seconds, memory in MB."""

    generated_text: str
    prompt: str
    generated_only: str
    request_id: str
    tokens: list[int]
    total_tokens: int
    finish_reason: str | None
    generation_steps: list[dict[str, Any]] | None = None
    statistics: dict[str, int]
    speed_metrics: dict[str, float]
    memory_usage: dict[str, Any]
    quality_metrics: dict[str, Any]
    parameters: dict[str, Any]


class StatusResponse(BaseModel):
    """How far a generation is."""

    status: Literal["processing", "completed", "cancelled", "failed", "not_found"]
    tokens_generated: int
    tokens_remaining: int


class EngineGenerateResponse(BaseModel):
    """One text of /v1/generate."""

    request_id: str
    text: str
    tokens: list[int]
    finish_reason: str | None
    prompt_tokens: int
    generated_tokens: int
    latency: float = Field(description="Seconds from submission to the last token.")


class GenerateBatchResponse(BaseModel):
    """The texts of /v1/generate_batch, in the prompts' order, each with an id for /status."""

    request_id: str
    results: list[EngineGenerateResponse]
    total_tokens: int
    latency: float


class StatsResponse(BaseModel):
    """Counters since start."""

    total_requests: int
    average_latency: float
    batching_stats: dict[str, float]
    speculative_stats: dict[str, float]
    prefix_cache_stats: dict[str, float]
