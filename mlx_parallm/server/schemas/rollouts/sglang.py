"""SGLang's POST /generate: https://docs.sglang.io/basic_usage/sampling_params.html."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

from mlx_parallm.server.schemas.base import (
    MAX_TOKEN_ID,
    FalseOnly,
    RequestModel,
    Unsupported,
    only,
    wrong,
)
from mlx_parallm.server.schemas.completions import IDS_SCHEMA, prompt_list
from mlx_parallm.server.schemas.sampling import (
    MAX_SEQUENCES,
    LogitBias,
    NumLogprobs,
    StopStrings,
    TokenId,
)

DEFAULT_NEW_TOKENS = 128
_TrueOnly = Annotated[
    bool, BeforeValidator(only(True, "true")), WithJsonSchema({"type": "boolean", "const": True})
]


class SglangSampling(RequestModel):
    """SGLang's sampling_params; defaults are its own."""

    max_new_tokens: int = Field(DEFAULT_NEW_TOKENS, ge=1, le=MAX_TOKEN_ID)
    min_new_tokens: int = Field(0, ge=0, le=MAX_TOKEN_ID)
    n: int = Field(1, ge=1, le=MAX_SEQUENCES)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(-1, ge=-1, le=MAX_TOKEN_ID, description="0 or -1 is off.")
    min_p: float = Field(0.0, ge=0, le=1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, gt=0, le=10)
    stop: StopStrings = Field(default_factory=list)
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=1024)
    ignore_eos: bool = False
    no_stop_trim: bool = Field(False, description="The text keeps its stop string.")
    skip_special_tokens: bool = True
    spaces_between_special_tokens: _TrueOnly = True
    logit_bias: LogitBias = Field(default_factory=dict)
    sampling_seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    json_schema: str | None = Field(None, min_length=1)
    regex: str | None = Field(None, min_length=1)
    ebnf: str | None = Field(None, min_length=1, description="A grammar: GBNF, or Lark.")
    structural_tag: Unsupported = None
    stop_regex: Unsupported = None
    custom_params: Unsupported = None


class SglangGenerateRequest(RequestModel):
    """Texts or token ids; one, or a list of them."""

    text: Annotated[list[str | list[int]], PlainValidator(prompt_list)] = Field(
        default_factory=list, json_schema_extra={"type": "string"}
    )
    input_ids: Annotated[
        list[str | list[int]], PlainValidator(prompt_list), WithJsonSchema(IDS_SCHEMA)
    ] = Field(default_factory=list)
    sampling_params: SglangSampling = Field(
        default_factory=lambda: SglangSampling.model_validate({})
    )
    rid: str | None = Field(None, min_length=1, max_length=256, description="The answer's id.")
    return_logprob: bool = Field(
        False, description="Of the distribution that was drawn from, at any temperature."
    )
    logprob_start_len: int = Field(
        -1, ge=-1, le=MAX_TOKEN_ID, description="Prompt tokens from here on too; -1: none."
    )
    top_logprobs_num: NumLogprobs = Field(0, description="Alternatives per token.")
    return_text_in_logprobs: bool = False
    lora_path: str = Field("", description="The name of an adapter of this server.")

    stream: FalseOnly = False
    token_ids_logprob: Unsupported = None
    image_data: Unsupported = None
    audio_data: Unsupported = None
    video_data: Unsupported = None
    input_embeds: Unsupported = None
    return_hidden_states: FalseOnly = False
    session_params: Unsupported = None
    custom_logit_processor: Unsupported = None

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if bool(self.text) == bool(self.input_ids):
            raise wrong("send either text or input_ids", "input_ids")
        if not self.return_logprob and (self.top_logprobs_num or self.logprob_start_len >= 0):
            raise wrong("this needs return_logprob", "return_logprob")
        prompts = len(self.text) + len(self.input_ids)
        if prompts * self.sampling_params.n > MAX_SEQUENCES:
            raise wrong(
                f"n times the number of prompts must be at most {MAX_SEQUENCES}",
                "sampling_params.n",
            )
        return self


class SglangSample(BaseModel):
    """One sample; several come as a list."""

    text: str
    output_ids: list[int]
    meta_info: dict[str, Any]
