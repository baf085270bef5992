"""POST /v1/responses: https://platform.openai.com/docs/api-reference/responses.

Unlike elsewhere, fields and kinds of tools that are not known here are ignored: clients send many
that only say how OpenAI's own service is to run.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, Field, PlainValidator, WithJsonSchema

from mlx_parallm.server.schemas.base import (
    MAX_TOKEN_ID,
    LenientModel,
    Unsupported,
    unsupported,
    wrong,
)
from mlx_parallm.server.schemas.sampling import MAX_LOGPROBS

Item = dict[str, Any]

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
    return {"content": _text(item.get("content"), f"{path}.content")}


def _call(item: Item, path: str) -> Item:
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise wrong("expected a string", f"{path}.{name}")
    return {}


def _call_output(item: Item, path: str) -> Item:
    if not isinstance(item.get("call_id"), str):
        raise wrong("expected a string", f"{path}.call_id")
    return {"output": _text(item.get("output"), f"{path}.output")}


def _reasoning(item: Item, path: str) -> Item:
    return {name: _text(item.get(name) or [], f"{path}.{name}") for name in ("content", "summary")}


_READERS = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _call_output,
    "reasoning": _reasoning,
}


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


def _not_in_background(value: Any) -> Any:
    if value is not False:
        raise unsupported("answers are not made in the background; use stream")
    return value


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
                            "content": {"type": "string"},
                        },
                        "required": ["role", "content"],
                        "additionalProperties": False,
                    },
                },
            ]
        }
    ),
]


class TextOptions(LenientModel):
    """Which form the text of the answer has."""

    format: dict[str, Any] | None = None


class ReasoningOptions(LenientModel):
    """How much to think."""

    effort: str | None = Field(None, max_length=64)
    summary: str | None = Field(None, description="Has no effect: all of the thinking is shown.")


class ResponsesRequest(LenientModel):
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
    tools: list[dict[str, Any]] = Field(
        default_factory=list, max_length=1024, description="Those of type function are used."
    )
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool = True
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
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
