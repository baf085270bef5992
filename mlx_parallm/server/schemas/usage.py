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


class Receipt(BaseModel):
    """What one choice was given, with `receipt`; times in milliseconds."""

    index: int
    seed: int | None
    queue_ms: float | None
    first_token_ms: float
    prompt_tokens: int
    cached_tokens: int
    cached_tokens_from_disk: int
    prompt_chunks: int
    generated_tokens: int
    steps: int
    mean_batch_rows: float | None
    guessed_tokens: int
    accepted_tokens: int
    preemptions: int
    constrained: bool
    adapter: str | None
    weight_versions: list[int]
    memories: list[str]


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
