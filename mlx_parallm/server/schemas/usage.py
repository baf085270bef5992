"""Token counts, as OpenAI reports them."""

from __future__ import annotations

from pydantic import BaseModel


class RequestMetrics(BaseModel):
    """Times of one answer in milliseconds, with include_metrics; null where there is none."""

    time_to_first_token_ms: float | None
    generation_time_ms: float | None
    queue_time_ms: float | None
    mean_itl_ms: float | None
    tokens_per_second: float | None


class PromptTokensDetails(BaseModel):
    """Where prompt tokens came from."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """What generated tokens were for; only of a model that thinks."""

    reasoning_tokens: int


class Usage(BaseModel):
    """Tokens of one request. Each prompt is counted once, every generated token is."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None
    completion_tokens_details: CompletionTokensDetails | None = None
