"""What TRL's VLLMClient sends to `trl vllm-serve`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainValidator, WithJsonSchema, model_validator

from mlx_parallm.server.schemas.base import (
    MAX_TOKEN_ID,
    RequestModel,
    Unsupported,
    unsupported,
    wrong,
)
from mlx_parallm.server.schemas.chat import Tool
from mlx_parallm.server.schemas.completions import PromptList
from mlx_parallm.server.schemas.sampling import MAX_SEQUENCES, NumLogprobs, TokenId

DEFAULT_MAX_TOKENS = 16


class _TrlSampling(RequestModel):
    """The settings of both requests; the ranges are checked as those of /v1/completions."""

    n: int = Field(1, ge=1, le=MAX_SEQUENCES)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(-1, ge=-1, le=MAX_TOKEN_ID, description="0 or -1 is off.")
    min_p: float = Field(0.0, ge=0, le=1)
    max_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=1, le=MAX_TOKEN_ID)
    logprobs: NumLogprobs | None = Field(
        0, description="Alternatives per token; of the distribution that was drawn from."
    )
    structured_outputs_regex: str | None = Field(None, min_length=1)
    generation_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More of vLLM's SamplingParams; they go first."
    )


class TrlGenerateRequest(_TrlSampling):
    """Prompts, and n samples of each."""

    prompts: PromptList
    images: list[None] | None = Field(None, description="Accepted where all are null.")


def _conversations(value: Any) -> list[list[Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(one, list) for one in value):
        raise wrong("expected a list of conversations, not empty")
    return value


class TrlChatRequest(_TrlSampling):
    """Conversations, and n samples of each."""

    messages: Annotated[
        list[list[Any]],
        PlainValidator(_conversations),
        WithJsonSchema({"type": "array", "items": {"type": "array", "items": {"type": "object"}}}),
    ]
    tools: list[Tool] = Field(default_factory=list, max_length=1024)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    chat_template: Unsupported = None


class SequenceLogprobsRequest(RequestModel):
    """Whole sequences, whose tokens behind the prompt are scored."""

    sequences: list[Annotated[list[TokenId], Field(min_length=1)]] = Field(
        min_length=1, max_length=MAX_SEQUENCES
    )
    prompt_lengths: list[Annotated[int, Field(ge=0)]]
    top_logprobs: int = Field(
        100, ge=1, le=MAX_TOKEN_ID, description="At most the server's --max-logprobs."
    )
    temperature: float = Field(1.0, description="Only 1.")
    response_format: Literal["json", "binary"] = "json"

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if len(self.sequences) != len(self.prompt_lengths):
            raise wrong("expected as many as there are sequences", "prompt_lengths")
        if self.temperature != 1:
            raise unsupported("prompts are scored at temperature 1 only", "temperature")
        for place, (ids, length) in enumerate(
            zip(self.sequences, self.prompt_lengths, strict=True)
        ):
            if length > len(ids):
                raise wrong(f"longer than its sequence ({len(ids)})", f"prompt_lengths.{place}")
        return self
