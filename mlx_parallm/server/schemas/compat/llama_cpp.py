"""llama.cpp's own requests: tools/server/README.md of ggml-org/llama.cpp.

Defaults are llama-server's. What would change the answer and cannot be honoured is refused;
what only says where or how it is computed is accepted without effect.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema
from pydantic import model_validator as _model_validator

from mlx_parallm.server.schemas.base import (
    MAX_TOKEN_ID,
    FalseOnly,
    RequestModel,
    Unsupported,
    only,
    unsupported,
    wrong,
)
from mlx_parallm.server.schemas.chat import ChatMessage, ChatTemplateFields
from mlx_parallm.server.schemas.sampling import (
    MAX_LOGPROBS,
    MAX_SEQUENCES,
    StopStrings,
)

Part = str | int
# A prompt: a text, or token ids and texts one after the other.
Parts = str | list[Part]


def _prompt_list(value: Any) -> list[Parts]:
    """Every documented shape of `prompt` as a list of prompts."""
    if isinstance(value, list) and value and not _is_one(value):
        if len(value) > MAX_SEQUENCES:
            raise wrong(f"at most {MAX_SEQUENCES} prompts are allowed in one request")
        return [_one(item) for item in value]
    return [_one(value)]


def _is_one(value: list[Any]) -> bool:
    """Whether a list is one prompt: token ids, perhaps with texts between them."""
    return any(type(item) is int for item in value)


def _one(value: Any) -> Parts:
    if isinstance(value, dict):
        if value.get("multimodal_data"):
            raise unsupported("multimodal_data is not supported")
        value = value.get("prompt_string")
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise wrong("expected a string, token ids, or a list of either, not empty")
    if not all(isinstance(item, str) or _is_token(item) for item in value):
        raise wrong("expected strings and token ids")
    return value


def _is_token(value: Any) -> bool:
    # type() and not isinstance(): True is an int.
    return type(value) is int and 0 <= value <= MAX_TOKEN_ID


def _bias(value: Any) -> list[tuple[Part, float]]:
    """[[token or text, bias]] or {token or text: bias} as a list; false forbids a token."""
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list):
        raise wrong("expected a list of [token, bias] or an object")
    return [_bias_pair(pair) for pair in pairs]


def _bias_pair(pair: Any) -> tuple[Part, float]:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        raise wrong("expected [token, bias]")
    token, bias = pair
    if isinstance(token, str) and token.isascii() and token.isdigit() and len(token) < 11:
        token = int(token)
    if not isinstance(token, str) and not _is_token(token):
        raise wrong("expected a token id or a text")
    if bias is False:
        return token, -100.0
    if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
        raise wrong("each bias must be false or a number from -100 to 100")
    return token, float(bias)


def _at_most_zero(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or value > 0:
        raise unsupported("only 0 or less is supported")
    return value


_OFF = WithJsonSchema({"type": "number", "maximum": 0})
# A sampler or limit that is off at 0 and below.
_Off = Annotated[float, BeforeValidator(_at_most_zero), _OFF]
_OneOnly = Annotated[float, BeforeValidator(only(1, "1")), WithJsonSchema({"const": 1})]
_NoneOnly = Annotated[list[Any], BeforeValidator(only([], "[]")), WithJsonSchema({"const": []})]
_PROMPT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MAX_SEQUENCES},
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
            "minItems": 1,
        },
        {
            "type": "object",
            "properties": {"prompt_string": {"type": "string"}},
            "required": ["prompt_string"],
        },
    ]
}
_BIASES = {
    "type": "array",
    "items": {
        "type": "array",
        "prefixItems": [
            {"type": "integer", "minimum": 0, "maximum": MAX_TOKEN_ID},
            {"type": "number", "minimum": -100, "maximum": 100},
        ],
        "minItems": 2,
        "maxItems": 2,
    },
}


class LlamaCompletionRequest(RequestModel):
    """POST /completion."""

    prompt: Annotated[list[Parts], PlainValidator(_prompt_list), WithJsonSchema(_PROMPT)]
    model: str = ""
    n_predict: int = Field(-1, ge=-2, le=MAX_TOKEN_ID, description="Below 0: what fits.")
    n_cmpl: int = Field(1, ge=1, le=MAX_SEQUENCES, description="Answers per prompt.")
    stream: bool = False
    temperature: float = Field(0.8, ge=0, le=2)
    top_k: int = Field(40, ge=-1, le=MAX_TOKEN_ID)
    top_p: float = Field(0.95, ge=0, le=1)
    min_p: float = Field(0.05, ge=0, le=1)
    seed: int = Field(-1, ge=-(2**63), le=2**63 - 1, description="-1 is a new one each time.")
    stop: StopStrings = Field(default_factory=list)
    repeat_penalty: float = Field(1.0, gt=0, le=10)
    repeat_last_n: int | None = Field(
        None, ge=-1, le=MAX_TOKEN_ID, description="0 switches penalties off, -1 is the context."
    )
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[
        list[tuple[Part, float]], PlainValidator(_bias), WithJsonSchema(_BIASES)
    ] = Field(default_factory=list)
    ignore_eos: bool = False
    n_probs: int = Field(0, ge=0, le=MAX_LOGPROBS, description="Alternatives of each token.")
    return_tokens: bool = Field(False, description="Show token ids; streams always do.")
    response_fields: list[str] = Field(
        default_factory=list, description='Show only these; "a/b" is b of a.'
    )
    json_schema: dict[str, Any] | None = None
    grammar: str = ""

    # Samplers and limits of llama.cpp's own; only their off values.
    dynatemp_range: _Off = 0.0
    typical_p: _OneOnly = 1.0
    dry_multiplier: _Off = 0.0
    xtc_probability: _Off = 0.0
    mirostat: _Off = 0
    top_n_sigma: _Off = -1.0
    min_keep: _Off = 0
    n_indent: _Off = 0
    t_max_predict_ms: _Off = 0
    samplers: Unsupported = None
    lora: _NoneOnly = Field(default_factory=list)
    post_sampling_probs: FalseOnly = False
    timings_per_token: FalseOnly = False
    return_progress: FalseOnly = False

    # No effect where the above are off.
    dynatemp_exponent: float = 1.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = 64
    dry_sequence_breakers: list[str] = Field(default_factory=list)
    xtc_threshold: float = 0.1
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    # Where and how it is computed: the scheduler and the prefix cache decide.
    n_keep: int = 0
    n_cache_reuse: int = 0
    id_slot: int = -1
    cache_prompt: bool = True
    sse_ping_interval: int = -1

    @_model_validator(mode="after")
    def _check_together(self) -> LlamaCompletionRequest:
        if self.repeat_last_n not in (None, -1, 0) and self.has_penalties:
            raise unsupported(
                "penalties look at the whole context: only -1, or 0 for none, is supported",
                "repeat_last_n",
            )
        if len(self.prompt) * self.n_cmpl > MAX_SEQUENCES:
            raise wrong(f"n_cmpl times the prompts must be at most {MAX_SEQUENCES}", "n_cmpl")
        return self

    @property
    def has_penalties(self) -> bool:
        """Whether a penalty is set that would change the answer."""
        others = (self.presence_penalty, self.frequency_penalty)
        return self.repeat_penalty != 1 or any(value != 0 for value in others)


class LlamaTokenizeRequest(RequestModel):
    """POST /tokenize with `content`."""

    content: str
    add_special: bool = Field(False, description="Add the tokenizer's BOS.")
    parse_special: Annotated[
        bool,
        BeforeValidator(only(True, "true")),
        WithJsonSchema({"const": True, "description": "Special tokens are tokens."}),
    ] = True
    with_pieces: bool = Field(False, description="Each token with its text or its bytes.")


class LlamaPiece(BaseModel):
    """A token; piece: its text, or its bytes where they are no text."""

    id: int
    piece: str | list[int]


class LlamaTokenizeResponse(BaseModel):
    """Token ids of the text."""

    tokens: list[int] | list[LlamaPiece]


class ApplyTemplateRequest(ChatTemplateFields):
    """POST /apply-template."""

    messages: list[ChatMessage] = Field(min_length=1)
    model: str = ""


class LlamaErrorDetail(BaseModel):
    """What went wrong; code is the status."""

    code: int
    message: str
    type: str


class LlamaError(BaseModel):
    """The body of every failure of these routes."""

    error: LlamaErrorDetail
