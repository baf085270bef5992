"""POST /v1/messages: https://platform.claude.com/docs/en/api/messages.

Unlike elsewhere, fields that are not known here are ignored: clients send many that only say how
Anthropic's own service is to run, such as cache_control.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, PlainValidator, WithJsonSchema, model_validator

from mlx_parallm.server.input.pictures.asked import AskedPicture, data_url
from mlx_parallm.server.input.pictures.data_urls import MEDIA_TYPES
from mlx_parallm.server.schemas.base import MAX_TOKEN_ID, LenientModel, unsupported, wrong
from mlx_parallm.server.schemas.sampling import StopStrings

Block = dict[str, Any]

# Kinds of blocks -> the field that holds what they say, and its type.
_KINDS: dict[str, tuple[str, type]] = {
    "text": ("text", str),
    "thinking": ("thinking", str),
    "redacted_thinking": ("data", str),
    "tool_use": ("input", dict),
    "tool_result": ("tool_use_id", str),
    "image": ("source", dict),
}


def _blocks(value: Any) -> list[Block]:
    if isinstance(value, str):
        return [{"type": "text", "text": value}]
    if not isinstance(value, list):
        raise wrong("expected a string or a list of content blocks")
    return [_block(block, f"{place}") for place, block in enumerate(value)]


def _block(block: Any, path: str) -> Block:
    kind = block.get("type") if isinstance(block, dict) else None
    if not isinstance(kind, str):
        raise wrong("expected an object with a type", path)
    if kind not in _KINDS:
        raise unsupported(f"content of type {kind[:40]!r} is not supported", f"{path}.type")
    field, expected = _KINDS[kind]
    if not isinstance(block.get(field), expected):
        raise wrong(f"expected {_NAMES[expected]}", f"{path}.{field}")
    if kind == "tool_use" and not (isinstance(block.get("name"), str) and block["name"]):
        raise wrong("expected a string", f"{path}.name")
    if kind == "tool_result":
        if not block["tool_use_id"]:
            raise wrong("expected an id", f"{path}.tool_use_id")
        return {**block, "content": _shown(block.get("content") or "", f"{path}.content")}
    if kind == "image":
        return {"type": "image", "picture": _picture(block["source"], f"{path}.source")}
    return dict(block)


def _picture(source: dict[str, Any], path: str) -> AskedPicture:
    kind = source.get("type")
    if kind not in _SOURCES:
        raise unsupported(f"expected one of {', '.join(_SOURCES)}", f"{path}.type")
    fields = _SOURCES[kind]
    for field in fields:
        if not isinstance(source.get(field), str):
            raise wrong("expected a string", f"{path}.{field}")
    if kind == "url":
        return AskedPicture(source["url"])
    return AskedPicture(data_url(source["data"], source["media_type"]))


def _shown(value: Any, path: str) -> list[Block]:
    """A string, or a list of texts and pictures."""
    if isinstance(value, str):
        return _blocks(value)
    if not isinstance(value, list):
        raise wrong("expected a string or a list of content blocks", path)
    blocks = [_block(block, f"{path}.{place}") for place, block in enumerate(value)]
    for place, block in enumerate(blocks):
        if block["type"] not in ("text", "image"):
            raise unsupported("only text and images are supported here", f"{path}.{place}.type")
    return blocks


def _texts(value: Any) -> list[Block]:
    """A string, or a list of text blocks."""
    blocks = _blocks(value)
    for place, block in enumerate(blocks):
        if block["type"] != "text":
            raise unsupported("only text is supported here", f"{place}.type")
    return blocks


# Where a picture comes from -> the fields that say so.
_SOURCES: dict[str, tuple[str, ...]] = {"base64": ("media_type", "data"), "url": ("url",)}
_NAMES: dict[type, str] = {str: "a string", dict: "an object"}
_TEXT_SCHEMA = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
_IMAGE_SCHEMA = {
    "type": "object",
    "properties": {
        "type": {"const": "image"},
        "source": {
            "type": "object",
            "properties": {
                "type": {"const": "base64"},
                "media_type": {"enum": list(MEDIA_TYPES)},
                "data": {"type": "string"},
            },
            "required": ["type", "media_type", "data"],
        },
    },
    "required": ["type", "source"],
}
_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_SCHEMA}]}
_CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"anyOf": [_TEXT_SCHEMA, _IMAGE_SCHEMA]}},
    ]
}

Blocks = Annotated[list[Block], PlainValidator(_blocks), WithJsonSchema(_CONTENT_SCHEMA)]
Texts = Annotated[list[Block], PlainValidator(_texts), WithJsonSchema(_TEXTS_SCHEMA)]


class Message(LenientModel):
    """One turn."""

    role: Literal["user", "assistant", "system"]
    content: Blocks

    @model_validator(mode="after")
    def _only_users_show_pictures(self) -> Message:
        for place, block in enumerate(self.content):
            if block["type"] == "image" and self.role != "user":
                raise unsupported(
                    f"a message of role {self.role!r} has no images", f"content.{place}.type"
                )
        return self


class MessageTool(LenientModel):
    """A tool that the client runs; tools of other kinds have no input_schema and are left out."""

    name: str = Field("", max_length=256)
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    strict: bool = False


class MessageToolChoice(LenientModel):
    """Whether tools are to be used."""

    type: Literal["auto", "any", "tool", "none"]
    name: str = ""
    disable_parallel_tool_use: bool = False


class Thinking(LenientModel):
    """Whether to think; kinds that are not known leave it to the model."""

    type: str
    budget_tokens: int | None = Field(None, ge=1, le=MAX_TOKEN_ID)


class OutputConfig(LenientModel):
    """How much effort, and which form the answer has."""

    effort: str | None = Field(None, max_length=64)
    format: dict[str, Any] | None = None


class CountTokensRequest(LenientModel):
    """POST /v1/messages/count_tokens."""

    model: str = Field("", description="A name from /v1/models; empty means the served model.")
    messages: list[Message] = Field(min_length=1)
    system: Texts = Field(default_factory=list)
    tools: list[MessageTool] = Field(default_factory=list, max_length=1024)
    tool_choice: MessageToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountTokensRequest):
    """A conversation in, the next message out."""

    max_tokens: int = Field(
        ge=1, le=MAX_TOKEN_ID, description="Cut to what is left of the context."
    )
    stop_sequences: StopStrings = Field(default_factory=list)
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKEN_ID)] | None = None
    stream: bool = False


class MessagesUsage(BaseModel):
    """Tokens; those of the prompt are input plus read from the cache."""

    input_tokens: int
    cache_creation_input_tokens: int
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: dict[str, int]


class MessagesResponse(BaseModel):
    """The message that was generated."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[dict[str, Any]]
    stop_reason: Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
    stop_sequence: str | None
    usage: MessagesUsage


class TokenCount(BaseModel):
    """How long a prompt is."""

    input_tokens: int


class MessagesErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class MessagesError(BaseModel):
    """The body of every failure of these endpoints."""

    type: Literal["error"]
    error: MessagesErrorDetail
