"""POST /v1/rl/rollout: groups of samples with all that a trainer needs of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema, model_validator

from mlx_parallm.server.schemas.base import FalseOnly, Unsupported, wrong
from mlx_parallm.server.schemas.chat import Tool
from mlx_parallm.server.schemas.completions import CompletionRequest, PromptList
from mlx_parallm.server.schemas.sampling import MAX_SEQUENCES, NumLogprobs
from mlx_parallm.server.schemas.usage import Usage

MAX_SAMPLES = 1024


def _conversations(value: Any) -> list[list[Any]]:
    """One conversation or several, as a list of them; their messages are checked one by one."""
    if not isinstance(value, list) or not value:
        raise wrong("expected a conversation, or a list of them, not empty")
    several = value if isinstance(value[0], list) else [value]
    if not all(isinstance(messages, list) for messages in several):
        raise wrong("expected a conversation, or a list of them")
    if len(several) > MAX_SEQUENCES:
        raise wrong(f"at most {MAX_SEQUENCES} conversations are allowed in one request")
    return several


_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"const": "user"}, "content": {"type": "string"}},
    "additionalProperties": False,
}
_CONVERSATION = {"type": "array", "items": _MESSAGE, "minItems": 1}


class RolloutRequest(CompletionRequest):
    """Prompts, or conversations; `n` samples of each."""

    prompt: PromptList = Field(
        default_factory=list, description="String, token ids, or a list of either."
    )
    messages: Annotated[
        list[list[Any]],
        PlainValidator(_conversations),
        WithJsonSchema(
            {"anyOf": [_CONVERSATION, {"type": "array", "items": _CONVERSATION, "minItems": 1}]}
        ),
    ] = Field(
        default_factory=list, description="Instead of prompt: a conversation, or a list of them."
    )
    tools: list[Tool] = Field(
        default_factory=list, max_length=1024, description="For the chat template."
    )
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More variables for the chat template."
    )
    n: int = Field(1, ge=1, le=MAX_SEQUENCES, description="Samples of each prompt: the group.")
    logprobs: NumLogprobs | None = Field(
        0, description="Alternatives per token; the token's own come always."
    )
    stream: bool = Field(True, description="A line as each sample finishes; false: one object.")
    reward_model: str | None = Field(
        None, min_length=1, description="The served model, if it has a reward head: its score."
    )

    # What comes anyway, and what belongs to one text.
    return_token_ids: bool = Field(False, description="Accepted; they always come.")
    return_weight_versions: bool = Field(False, description="Accepted; they always come.")
    logprobs_mode: Unsupported = None
    include_metrics: FalseOnly = False
    stream_options: Unsupported = None
    return_tokens_as_token_ids: FalseOnly = False
    echo: FalseOnly = False
    best_of: Unsupported = None
    prompt_logprobs: Unsupported = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if bool(self.prompt) == bool(self.messages):
            raise wrong("send either prompt or messages", "messages" if self.prompt else "prompt")
        if self.max_tokens == 0:
            raise wrong("a sample has at least one token", "max_tokens")
        prompts = len(self.prompt) or len(self.messages)
        if prompts * self.n > MAX_SAMPLES:
            raise wrong(f"n times the number of prompts must be at most {MAX_SAMPLES}", "n")
        return self

    @property
    def both_logprobs(self) -> bool:
        """Raw ones, and those of the distribution that was drawn from."""
        return True


class RolloutSample(BaseModel):
    """One sample.

    Attributes:
        index: prompt_index * n + sample_index.
        logprobs: of each token under the model, in nats.
        processed_logprobs: of each token under the distribution that it was drawn from.
        weight_versions: the version of the adapter, or of the model where there is none, that
            computed each token; 0 is the model as loaded.
        reward: of prompt and sample together, where a reward model was named.
    """

    object: Literal["rollout.sample"]
    index: int
    prompt_index: int
    sample_index: int
    prompt_token_ids: list[int]
    token_ids: list[int]
    logprobs: list[float]
    processed_logprobs: list[float]
    top_logprobs: list[list[dict[str, float]]] | None = None
    weight_versions: list[int]
    finish_reason: Literal["stop", "length"]
    stop_reason: str | int | None
    text: str
    reward: float | None = None


class RolloutResponse(BaseModel):
    """All samples; a stream has one a line as they finish, and this without them as its last."""

    id: str
    object: Literal["rollout"]
    created: int
    model: str
    system_fingerprint: str
    samples: list[RolloutSample] | None = None
    usage: Usage
