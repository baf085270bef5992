"""Anthropic's messages as chats of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from mlx_parallm.server.compat.translation import translated
from mlx_parallm.server.compat.turns import Turn, content_of, in_order
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.flow.tracks import chat_tracks
from mlx_parallm.server.input.chat_template import NO_EFFORT, effort_variables
from mlx_parallm.server.input.pictures.asked import AskedPicture
from mlx_parallm.server.input.prefix_namespace import Namespace
from mlx_parallm.server.input.prompts import Prompts
from mlx_parallm.server.input.request_defaults import with_defaults
from mlx_parallm.server.schemas.chat import ChatCompletionRequest
from mlx_parallm.server.schemas.compat.messages import (
    Block,
    CountTokensRequest,
    Message,
    MessagesRequest,
    MessageTool,
)
from mlx_parallm.settings import Settings

# Claude Code begins its system prompt with a hash that is another one in every request: with it
# no two prompts would begin alike.
_BILLING = "x-anthropic-billing-header"

_NAMES = {"response_format": "output_config.format", "stop": "stop_sequences"}
_SAMPLING = ("temperature", "top_p", "top_k")


async def message_tracks(
    body: MessagesRequest, prompts: Prompts, settings: Settings, namespace: Namespace
) -> list[Track]:
    """The one track of a request.

    Raises:
        InvalidRequestError, ContextLengthError: the request cannot be served.
    """
    request = _chat(body, prompts, settings, _sampling(body))
    return await chat_tracks(
        request, prompts, prompts.tokenizer, namespace=namespace, at_most=body.max_tokens
    )


async def count_tokens(body: CountTokensRequest, prompts: Prompts, settings: Settings) -> int:
    """Tokens of the prompt.

    Raises:
        InvalidRequestError, ContextLengthError: the request cannot be served.
    """
    return len((await prompts.chat(_chat(body, prompts, settings, {}))).ids)


def _chat(
    body: CountTokensRequest, prompts: Prompts, settings: Settings, sampling: dict[str, Any]
) -> ChatCompletionRequest:
    choice = body.tool_choice
    fields = {
        **sampling,
        "messages": list(in_order(chat_messages(body.system, body.messages))),
        "tools": [_tool(tool) for tool in body.tools if tool.input_schema is not None],
        "tool_choice": _tool_choice(body),
        "parallel_tool_calls": choice is None or not choice.disable_parallel_tool_use,
        "continue_final_message": body.messages[-1].role == "assistant",
        "chat_template_kwargs": _thinking(body, prompts),
        "thinking_token_budget": _budget(body, prompts),
        "response_format": _response_format(body),
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    return translated(
        ChatCompletionRequest, with_defaults(fields, ChatCompletionRequest, settings), _NAMES
    )


def _sampling(body: MessagesRequest) -> dict[str, Any]:
    given = {name: getattr(body, name) for name in _SAMPLING}
    return {**given, "stop": body.stop_sequences, "stream": body.stream}


def chat_messages(system: list[Block], messages: list[Message]) -> Iterator[Turn]:
    """Messages as chat templates know them."""
    prompt = _joined(block for block in system if not block["text"].startswith(_BILLING))
    if prompt:
        yield {"role": "system", "content": prompt}
    names: dict[str, str] = {}
    for place, message in enumerate(messages):
        if message.role == "assistant":
            turn = _assistant(message.content)
            names |= {call["id"]: call["function"]["name"] for call in turn["tool_calls"]}
            yield turn
        elif message.role == "system":
            yield {"role": "system", "content": _joined(_only_texts(message.content))}
        else:
            yield from _user(message.content, names, f"messages.{place}.content")


def _assistant(blocks: list[Block]) -> Turn:
    calls = [block for block in blocks if block["type"] == "tool_use"]
    turn: Turn = {
        "role": "assistant",
        "content": _joined(_only_texts(blocks)),
        "tool_calls": [
            {
                "id": str(call.get("id") or ""),
                "type": "function",
                "function": {"name": call["name"], "arguments": call["input"]},
            }
            for call in calls
        ],
    }
    thought = "\n".join(block["thinking"] for block in blocks if block["type"] == "thinking")
    return {**turn, "reasoning_content": thought} if thought else turn


def _user(blocks: list[Block], names: dict[str, str], path: str) -> Iterator[Turn]:
    parts: list[str | AskedPicture] = []
    for place, block in enumerate(blocks):
        if block["type"] in ("text", "image"):
            parts.append(_part(block, f"{path}.{place}"))
        if block["type"] == "tool_result":
            if parts:
                yield {"role": "user", "content": content_of(parts)}
                parts = []
            yield _tool_result(block, names, f"{path}.{place}.content")
    if parts:
        yield {"role": "user", "content": content_of(parts)}


def _part(block: Block, path: str) -> str | AskedPicture:
    if block["type"] == "text":
        return str(block["text"])
    picture: AskedPicture = block["picture"]
    return picture.at(f"{path}.source")


def _tool_result(block: Block, names: dict[str, str], path: str) -> Turn:
    parts = [_part(shown, f"{path}.{place}") for place, shown in enumerate(block["content"])]
    shown = {
        "role": "tool",
        "tool_call_id": block["tool_use_id"],
        "content": content_of(parts),
    }
    name = names.get(block["tool_use_id"])
    return {**shown, "name": name} if name else shown


def _only_texts(blocks: list[Block]) -> list[Block]:
    return [block for block in blocks if block["type"] == "text"]


def _joined(blocks: Iterable[Block]) -> str:
    return "\n".join(block["text"] for block in blocks)


def _tool(tool: MessageTool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description:
        function["description"] = tool.description
    if tool.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _tool_choice(body: CountTokensRequest) -> Any:
    choice = body.tool_choice
    if choice is None or not any(tool.input_schema is not None for tool in body.tools):
        return None
    if choice.type == "tool":
        return {"type": "function", "function": {"name": choice.name}}
    return "required" if choice.type == "any" else choice.type


def _thinking(body: CountTokensRequest, prompts: Prompts) -> dict[str, Any]:
    """Variables for the chat template; where it has none, how much to think is the model's own."""
    effort = body.output_config.effort if body.output_config is not None else None
    kind = body.thinking.type if body.thinking is not None else None
    if kind == "disabled":
        effort = NO_EFFORT
    elif kind == "enabled" and effort is None:
        effort = "high"
    return effort_variables(prompts.tokenizer, effort)


def _budget(body: CountTokensRequest, prompts: Prompts) -> int | None:
    """Tokens of thinking, where its end can be forced."""
    if body.thinking is None or prompts.dialect.thinking is None:
        return None
    return body.thinking.budget_tokens


def _response_format(body: CountTokensRequest) -> dict[str, Any] | None:
    wanted = body.output_config.format if body.output_config is not None else None
    if wanted is None:
        return None
    schema = {"name": "answer", "schema": wanted.get("schema"), "strict": True}
    return {"type": wanted.get("type"), "json_schema": schema}
