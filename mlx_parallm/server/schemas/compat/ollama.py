"""Ollama's requests: https://docs.ollama.com/api.

Options whose defaults are Ollama's; those that would change the answer and cannot be honoured
are refused, those that only say how Ollama is to run a model are accepted without effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
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
    unsupported,
    wrong,
)
from mlx_parallm.server.schemas.sampling import (
    MAX_LOGPROBS,
    MAX_SEQUENCES,
    StopStrings,
    TokenId,
)

_LEVELS = ("low", "medium", "high", "max")


def _only_if_empty(value: Any) -> Any:
    if value not in ("", []):
        raise unsupported("this parameter is not supported by this server")
    return value


def _format(value: Any) -> Any:
    if value in ("", "json") or isinstance(value, dict):
        return value
    raise wrong('expected "json" or a JSON schema')


def _think(value: Any) -> Any:
    if isinstance(value, bool) or value in _LEVELS:
        return value
    raise wrong('expected true, false, "low", "medium", "high" or "max"')


EmptyOnly = Annotated[
    Any, PlainValidator(_only_if_empty), WithJsonSchema({"enum": ["", []], "description": "Empty."})
]
Format = Annotated[
    Any,
    PlainValidator(_format),
    WithJsonSchema({"anyOf": [{"enum": ["", "json"]}, {"type": "object"}]}),
]
Think = Annotated[
    Any,
    PlainValidator(_think),
    WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": list(_LEVELS)}]}),
]
KeepAlive = Annotated[
    str | int | float | None,
    Field(description="Accepted; the model stays as long as the server runs."),
]
_ZeroOnly = Annotated[int, BeforeValidator(only(0, "0")), WithJsonSchema({"const": 0})]
_OneOnly = Annotated[float, BeforeValidator(only(1, "1")), WithJsonSchema({"const": 1})]


class OllamaOptions(RequestModel):
    """How to sample; names and defaults are Ollama's."""

    num_predict: int = Field(-1, ge=-2, le=MAX_TOKEN_ID, description="Below 0: what fits.")
    num_ctx: int | None = Field(
        None, ge=1, le=MAX_TOKEN_ID, description="Tokens of prompt and answer; the model's at most."
    )
    temperature: float = Field(0.8, ge=0, le=2)
    top_k: int = Field(40, ge=-1, le=MAX_TOKEN_ID)
    top_p: float = Field(0.9, ge=0, le=1)
    min_p: float = Field(0.0, ge=0, le=1)
    seed: int = Field(-1, ge=-(2**63), le=2**63 - 1, description="-1 is a new one each time.")
    stop: StopStrings = Field(default_factory=list)
    repeat_penalty: float = Field(1.0, gt=0, le=10)
    repeat_last_n: int | None = Field(
        None, ge=-1, le=MAX_TOKEN_ID, description="0 switches penalties off, -1 is the context."
    )
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)

    typical_p: _OneOnly = 1.0
    tfs_z: _OneOnly = 1.0
    mirostat: _ZeroOnly = 0
    mirostat_tau: float = Field(5.0, description="No effect without mirostat.")
    mirostat_eta: float = Field(0.1, description="No effect without mirostat.")

    penalize_newline: bool = Field(True, description="No effect, as in Ollama; so are the rest.")
    num_keep: int = 4
    num_batch: int = 512
    num_gpu: int = -1
    main_gpu: int = 0
    num_thread: int = 0
    draft_num_predict: int = 0
    numa: bool = False
    low_vram: bool = False
    f16_kv: bool = True
    logits_all: bool = False
    vocab_only: bool = False
    use_mmap: bool = True
    use_mlock: bool = False
    embedding_only: bool = False

    @model_validator(mode="after")
    def _whole_context_is_penalized(self) -> OllamaOptions:
        if self.repeat_last_n not in (None, -1, 0) and self.has_penalties:
            raise unsupported(
                "penalties look at the whole context: only -1, or 0 for none, is supported",
                "repeat_last_n",
            )
        return self

    @property
    def has_penalties(self) -> bool:
        """Whether a penalty is set that would change the answer."""
        others = (self.presence_penalty, self.frequency_penalty)
        return self.repeat_penalty != 1 or any(value != 0 for value in others)


def _no_options() -> OllamaOptions:
    return OllamaOptions.model_validate({})


class OllamaFields(RequestModel):
    """What chats and completions share."""

    model: str = Field("", description='A served name, also with ":latest".')
    stream: bool = Field(True, description="One JSON object a line; true by default.")
    options: OllamaOptions = Field(default_factory=_no_options)
    format: Format = ""
    think: Think = Field(None, description="Nothing leaves it to the model's template.")
    keep_alive: KeepAlive = None
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    truncate: FalseOnly = False
    shift: FalseOnly = False


def _image_list(value: Any) -> list[str]:
    images = value or []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise wrong("expected a list of pictures in base64")
    return images


Images = Annotated[
    list[str],
    PlainValidator(_image_list),
    WithJsonSchema(
        {"type": "array", "items": {"type": "string"}, "description": "Pictures in base64."}
    ),
]


class OllamaFunction(RequestModel):
    """The name and arguments of an earlier call."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1)
    arguments: dict[str, Any] = Field(default_factory=dict)


class OllamaToolCall(RequestModel):
    """A call that the model made in an earlier turn."""

    model_config = ConfigDict(extra="ignore")

    id: str = ""
    function: OllamaFunction


class OllamaMessage(RequestModel):
    """One turn."""

    role: Annotated[
        Literal["system", "user", "assistant", "tool"],
        BeforeValidator(lambda value: value.lower() if isinstance(value, str) else value),
    ]
    content: str = ""
    thinking: str = ""
    images: Images = Field(default_factory=list)
    tool_calls: list[OllamaToolCall] = Field(default_factory=list)
    tool_name: str = ""
    tool_call_id: str = ""


class OllamaChatRequest(OllamaFields):
    """POST /api/chat. Without messages it only says that the model is there."""

    messages: list[OllamaMessage] = Field(default_factory=list)
    tools: list[dict[str, Any]] = Field(default_factory=list, max_length=1024)


class OllamaGenerateRequest(OllamaFields):
    """POST /api/generate. Without a prompt it only says that the model is there."""

    prompt: str = ""
    system: str = ""
    raw: bool = Field(False, description="The prompt as it is, without the chat template.")
    context: list[TokenId] = Field(
        default_factory=list, description="Token ids of an earlier answer, to go on from."
    )
    suffix: EmptyOnly = ""
    template: EmptyOnly = ""
    images: Images = Field(default_factory=list)


def _input_list(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) and value else value or []
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise wrong("expected a string or a list of strings")
    if len(texts) > MAX_SEQUENCES:
        raise wrong(f"at most {MAX_SEQUENCES} texts are allowed in one request")
    return texts


class OllamaEmbedRequest(RequestModel):
    """POST /api/embed."""

    model: str = ""
    input: Annotated[
        list[str],
        PlainValidator(_input_list),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}, "maxItems": MAX_SEQUENCES},
                ]
            }
        ),
    ] = Field(default_factory=list)
    truncate: bool = Field(True, description="Cut a text that is too long; false is an error.")
    dimensions: int | None = Field(None, ge=1, le=MAX_TOKEN_ID)
    options: OllamaOptions = Field(default_factory=_no_options)
    keep_alive: KeepAlive = None


class OllamaEmbeddingsRequest(RequestModel):
    """POST /api/embeddings, the older form."""

    model: str = ""
    prompt: str = ""
    options: OllamaOptions = Field(default_factory=_no_options)
    keep_alive: KeepAlive = None


class OllamaShowRequest(RequestModel):
    """POST /api/show. name: the older name of model."""

    model: str = ""
    name: str = ""
    verbose: bool = Field(False, description="Accepted; there is nothing more to show.")
    system: Unsupported = None
    template: Unsupported = None
    options: Unsupported = None


class OllamaError(BaseModel):
    """The body of every failure below /api."""

    error: str
