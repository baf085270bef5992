"""POST /v1/completions: https://platform.openai.com/docs/api-reference/completions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema, model_validator

from mlx_parallm.server.schemas.base import MAX_TOKEN_ID, Unsupported, unsupported, wrong
from mlx_parallm.server.schemas.sampling import MAX_SEQUENCES, NumLogprobs, ReportFields
from mlx_parallm.server.schemas.usage import Receipt, RequestMetrics, Usage


def prompt_list(value: Any) -> list[str | list[int]]:
    """Every shape of `prompt` as a list of prompts."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise wrong("expected a string, token ids, or a list of either, not empty")
    if isinstance(value[0], int):
        return [_token_ids(value)]
    if len(value) > MAX_SEQUENCES:
        raise wrong(f"at most {MAX_SEQUENCES} prompts are allowed in one request")
    if all(isinstance(item, str) for item in value):
        return list(value)
    if all(isinstance(item, list) for item in value):
        return [_token_ids(item) for item in value]
    raise wrong("expected a string, token ids, or a list of either")


def _token_ids(value: list[Any]) -> list[int]:
    if not value:
        raise wrong("a prompt needs at least one token")
    # type() and not isinstance(): True is an int.
    if not all(type(item) is int and 0 <= item <= MAX_TOKEN_ID for item in value):
        raise wrong("expected whole numbers that are token ids")
    return value


IDS_SCHEMA = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
    "minItems": 1,
}


def _list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": MAX_SEQUENCES}


PromptList = Annotated[
    list[str | list[int]],
    PlainValidator(prompt_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                IDS_SCHEMA,
                _list_of({"type": "string"}),
                _list_of(IDS_SCHEMA),
            ]
        }
    ),
]


class CompletionRequest(ReportFields):
    """Text or token ids in, their continuation out."""

    prompt: PromptList = Field(description="String, token ids, or a list of either.")
    max_tokens: int | None = Field(
        None, ge=0, le=MAX_TOKEN_ID, description="Default 16; 0 only scores the prompt."
    )
    best_of: int | None = Field(
        None, ge=1, le=MAX_SEQUENCES, description="Generate so many, return the n likeliest."
    )
    echo: bool = Field(False, description="Return the prompt before the text.")
    logprobs: NumLogprobs | None = Field(
        None, description="Alternatives per token; with echo the prompt's."
    )
    add_special_tokens: bool = Field(True, description="Add the tokenizer's BOS to a text.")
    suffix: Unsupported = None
    prompt_embeds: Unsupported = None

    @model_validator(mode="after")
    def _check_together(self) -> CompletionRequest:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options is only allowed when stream is true", "stream_options")
        if self.best_of is not None and self.best_of < self.n:
            raise wrong(f"best_of must be at least n ({self.n})", "best_of")
        if self.stream and self.num_candidates > self.n:
            raise unsupported("best_of above n cannot be streamed", "best_of")
        if self.stream and self.prompt_logprobs is not None:
            raise unsupported(
                "prompt_logprobs cannot be streamed; use echo with logprobs", "prompt_logprobs"
            )
        self.check_named_tokens(reports=self.logprobs is not None, generates=self.max_tokens != 0)
        if len(self.prompt) * self.num_candidates > MAX_SEQUENCES:
            raise wrong(f"n times the number of prompts must be at most {MAX_SEQUENCES}", "n")
        return self

    @property
    def num_candidates(self) -> int:
        """Sequences per prompt: n, or best_of where it is given."""
        return self.best_of or self.n


class CompletionLogprobs(BaseModel):
    """Parallel lists over the tokens of one choice."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class PromptLogprob(BaseModel):
    """One alternative of one prompt token; rank counts from 1, null below the top."""

    logprob: float
    rank: int | None
    decoded_token: str


class CompletionChoice(BaseModel):
    """One answer."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None
    stop_reason: str | int | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    weight_versions: list[int] | None = None
    base_weight_versions: list[int] | None = None
    citations: list[dict[str, Any]] | None = None


class CompletionResponse(BaseModel):
    """The answers to all prompts; choice i*n+j is answer j to prompt i."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    metrics: RequestMetrics | None = None
    receipts: list[Receipt] | None = None
