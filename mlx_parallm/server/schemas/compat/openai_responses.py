"""POST /v1/responses: https://platform.openai.com/docs/api-reference/responses.

Unlike elsewhere, fields and kinds of tools that are not known here are ignored: clients send many
that only say how OpenAI's own service is to run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema

from mlx_parallm.server.input.pictures.asked import AskedPicture, detail_of
from mlx_parallm.server.schemas.base import (
    MAX_TOKEN_ID,
    CacheSalt,
    LenientModel,
    Unsupported,
    unsupported,
    wrong,
)
from mlx_parallm.server.schemas.sampling import MAX_LOGPROBS, StopStrings

Item = dict[str, Any]

# An item of a stored response, by its id.
REFERENCE = "item_reference"
PICTURE_PART = "input_image"
_MAX_TOOLS = 1024
_ROLES = ("user", "assistant", "system", "developer")
_TEXT_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "refusal": "refusal",
    "reasoning_text": "text",
    "summary_text": "text",
}


def _input(value: Any) -> list[Item]:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list) or not value:
        raise wrong("expected a string or a list of items")
    return [_item(item, f"{place}") for place, item in enumerate(value)]


def _item(item: Any, path: str) -> Item:
    if not isinstance(item, dict):
        raise wrong("expected an object", path)
    kind = item.get("type") or "message"
    if kind not in _READERS:
        raise unsupported(f"items of type {str(kind)[:40]!r} are not supported", f"{path}.type")
    return {**item, "type": kind, **_READERS[kind](item, path)}


def _message(item: Item, path: str) -> Item:
    if item.get("role") not in _ROLES:
        raise wrong(f"expected one of {', '.join(_ROLES)}", f"{path}.role")
    shows = item["role"] == "user"
    return {"content": _said(item.get("content"), f"{path}.content", shows=shows)}


def _call(item: Item, path: str) -> Item:
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise wrong("expected a string", f"{path}.{name}")
    return {}


def _call_output(item: Item, path: str) -> Item:
    if not isinstance(item.get("call_id"), str):
        raise wrong("expected a string", f"{path}.call_id")
    return {"output": _said(item.get("output"), f"{path}.output", shows=True)}


def _reference(item: Item, path: str) -> Item:
    if not isinstance(item.get("id"), str):
        raise wrong("expected a string", f"{path}.id")
    return {}


def _reasoning(item: Item, path: str) -> Item:
    return {name: _text(item.get(name) or [], f"{path}.{name}") for name in ("content", "summary")}


_READERS = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _call_output,
    "reasoning": _reasoning,
    REFERENCE: _reference,
}


def _said(value: Any, path: str, *, shows: bool) -> str | list[Item]:
    """A text, or, where there are pictures, all parts as they came: they are stored as JSON.

    Args:
        shows: whether pictures may be among them.
    """
    has_pictures = isinstance(value, list) and any(
        isinstance(part, dict) and part.get("type") == PICTURE_PART for part in value
    )
    if not (shows and has_pictures):
        return _text(value, path)
    for place, part in enumerate(value):
        _check_part(part, f"{path}.{place}")
    parts: list[Item] = value
    return parts


def _check_part(part: Any, path: str) -> None:
    if not isinstance(part, dict) or part.get("type") != PICTURE_PART:
        _part(part, path)
        return
    if not isinstance(part.get("image_url"), str):
        raise unsupported("expected a URL; stored files are not supported", f"{path}.image_url")
    detail_of(part.get("detail"), f"{path}.detail")


def parts_of(content: str | list[Item], path: str) -> list[str | AskedPicture]:
    """What a validated message, or the output of a call, says.

    Args:
        path: of the content in the client's body.
    """
    if isinstance(content, str):
        return [content]
    return [
        AskedPicture(
            part["image_url"],
            part.get("detail") or "auto",
            param=f"{path}.{place}.image_url",
        )
        if part["type"] == PICTURE_PART
        else str(part[_TEXT_PARTS[part["type"]]])
        for place, part in enumerate(content)
    ]


def _text(value: Any, path: str) -> str:
    """A string, or the texts of parts."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong("expected a string or a list of content parts", path)
    return "\n".join(_part(part, f"{path}.{place}") for place, part in enumerate(value))


def _part(part: Any, path: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str):
        raise wrong("expected an object with a type", path)
    if kind not in _TEXT_PARTS:
        raise unsupported(f"content of type {kind[:40]!r} is not supported", f"{path}.type")
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise wrong("expected a string", f"{path}.{_TEXT_PARTS[kind]}")
    return text


def _tools(value: Any) -> list[dict[str, Any]]:
    """Tools of any type; those that are used here have what they need."""
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise wrong("expected a list of objects")
    if len(value) > _MAX_TOOLS:
        raise wrong(f"expected at most {_MAX_TOOLS} tools")
    for place, tool in enumerate(value):
        if tool.get("type") == "function":
            _check_name(tool, f"{place}")
        if tool.get("type") == "namespace":
            _check_namespace(tool, f"{place}")
    return value


def _check_namespace(tool: dict[str, Any], path: str) -> None:
    _check_name(tool, path)
    inner = tool.get("tools")
    if not isinstance(inner, list) or not all(isinstance(entry, dict) for entry in inner):
        raise wrong("expected a list of objects", f"{path}.tools")
    for place, entry in enumerate(inner):
        if entry.get("type") == "function":
            _check_name(entry, f"{path}.tools.{place}")


def _check_name(tool: dict[str, Any], path: str) -> None:
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise wrong("expected a name", f"{path}.name")


def _not_in_background(value: Any) -> Any:
    if value is not False:
        raise unsupported("answers are not made in the background; use stream")
    return value


_PART_SCHEMAS = [
    {
        "type": "object",
        "properties": {"type": {"const": kind}, field: {"type": "string"}},
        "required": ["type", field],
    }
    for kind, field in (("input_text", "text"), (PICTURE_PART, "image_url"))
]

Input = Annotated[
    list[Item],
    PlainValidator(_input),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "properties": {
                            "role": {"enum": list(_ROLES)},
                            "content": {
                                "anyOf": [
                                    {"type": "string"},
                                    {"type": "array", "items": {"anyOf": _PART_SCHEMAS}},
                                ]
                            },
                        },
                        "required": ["role", "content"],
                        "additionalProperties": False,
                    },
                },
            ]
        }
    ),
]


Tools = Annotated[
    list[dict[str, Any]],
    PlainValidator(_tools),
    WithJsonSchema({"type": "array", "maxItems": _MAX_TOOLS, "items": {"type": "object"}}),
]


class TextOptions(LenientModel):
    """Which form the text of the answer has."""

    format: dict[str, Any] | None = None


class ReasoningOptions(LenientModel):
    """How much to think."""

    effort: str | None = Field(None, max_length=64)
    summary: str | None = Field(
        None, description="Any: all of the thinking is told as its summary, which clients show."
    )


class SamplingExtras(LenientModel):
    """Of our other endpoints' fields, those that OpenAI's Responses do not have."""

    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    top_k: int | None = Field(None, ge=-1, le=MAX_TOKEN_ID)
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: StopStrings | None = None
    ignore_eos: bool | None = None
    priority: int | None = Field(None, ge=-(2**63), le=2**63 - 1)


class ResponsesRequest(SamplingExtras):
    """Items in, items out."""

    model: str = Field("", description="A name from /v1/models; empty means the served model.")
    input: Input
    instructions: str | None = Field(None, description="The system's message of this request.")
    previous_response_id: str | None = Field(None, description="A stored response to go on from.")
    store: bool = Field(True, description="Keep the response, so that it can be gone on from.")
    stream: bool = False
    max_output_tokens: int | None = Field(
        None, ge=1, le=MAX_TOKEN_ID, description="Cut to what is left of the context."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    tools: Tools = Field(
        default_factory=list, description="Those of type function and namespace are used."
    )
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    chat_template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="More variables for the chat template."
    )
    cache_salt: CacheSalt = None
    include: list[str] = Field(default_factory=list)
    metadata: dict[str, Any] = Field(default_factory=dict)
    user: str | None = None
    background: Annotated[
        bool, BeforeValidator(_not_in_background), WithJsonSchema({"const": False})
    ] = False
    conversation: Unsupported = None
    prompt: Unsupported = None


class ResponseObject(BaseModel):
    """A response; more of its fields are OpenAI's."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["completed", "incomplete", "failed", "in_progress", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    usage: dict[str, Any] | None


class InputTokens(BaseModel):
    """How long the prompt of a request is."""

    object: Literal["response.input_tokens"]
    input_tokens: int


class DeletedResponse(BaseModel):
    """What was deleted."""

    id: str
    object: Literal["response"]
    deleted: bool


class InputItems(BaseModel):
    """What a response was made from."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
