"""OpenAI's Responses as chats of ours."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from typing import Any

from mlx_parallm.server.compat.translation import translated
from mlx_parallm.server.compat.turns import Turn, in_order
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.flow.tracks import chat_tracks
from mlx_parallm.server.input.chat_template import effort_variables
from mlx_parallm.server.input.prefix_namespace import Namespace
from mlx_parallm.server.input.prompts import Prompts
from mlx_parallm.server.input.request_defaults import with_defaults
from mlx_parallm.server.schemas.chat import ChatCompletionRequest
from mlx_parallm.server.schemas.compat.openai_responses import Item, ResponsesRequest
from mlx_parallm.settings import Settings

WITH_LOGPROBS = "message.output_text.logprobs"
_NAMES = {"response_format": "text.format", "messages": "input"}


async def response_tracks(
    body: ResponsesRequest,
    earlier: list[Item],
    prompts: Prompts,
    settings: Settings,
    namespace: Namespace,
) -> list[Track]:
    """The one track of a request.

    Args:
        earlier: items of the conversation that it goes on with.

    Raises:
        InvalidRequestError, ContextLengthError: the request cannot be served.
    """
    request = _chat(body, earlier, prompts, settings)
    return await chat_tracks(
        request, prompts, prompts.tokenizer, namespace=namespace, at_most=body.max_output_tokens
    )


def _chat(
    body: ResponsesRequest, earlier: list[Item], prompts: Prompts, settings: Settings
) -> ChatCompletionRequest:
    tools = [_tool(tool) for tool in functions_of(body)]
    with_logprobs = wants_logprobs(body)
    fields: dict[str, Any] = {
        "messages": list(in_order(_turns(body.instructions, [*earlier, *body.input]))),
        "tools": tools,
        "tool_choice": _tool_choice(body.tool_choice) if tools else None,
        "parallel_tool_calls": body.parallel_tool_calls,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": with_logprobs,
        "top_logprobs": body.top_logprobs if with_logprobs else None,
        "stream": body.stream,
        "response_format": _response_format(body),
        "chat_template_kwargs": effort_variables(
            prompts.tokenizer, body.reasoning.effort if body.reasoning is not None else None
        ),
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    return translated(
        ChatCompletionRequest, with_defaults(fields, ChatCompletionRequest, settings), _NAMES
    )


def functions_of(body: ResponsesRequest) -> list[dict[str, Any]]:
    """The tools that the client runs; OpenAI's own are not here."""
    return [tool for tool in body.tools if tool.get("type") == "function"]


def wants_logprobs(body: ResponsesRequest) -> bool:
    """Whether the log-probabilities of the text are asked for."""
    return WITH_LOGPROBS in body.include or bool(body.top_logprobs)


def _turns(instructions: str | None, items: Iterable[Item]) -> Iterator[Turn]:
    if instructions:
        yield {"role": "system", "content": instructions}
    waiting: Turn | None = None
    names: dict[str, str] = {}
    for item in items:
        if _is_of_assistant(item):
            waiting = waiting or {"role": "assistant", "content": "", "tool_calls": []}
            _add(waiting, item, names)
            continue
        if waiting is not None:
            yield waiting
            waiting = None
        yield _tool_output(item, names) if item["type"] != "message" else _said(item)
    if waiting is not None:
        yield waiting


def _is_of_assistant(item: Item) -> bool:
    return item["type"] in ("function_call", "reasoning") or item.get("role") == "assistant"


def _add(turn: Turn, item: Item, names: dict[str, str]) -> None:
    if item["type"] == "message":
        turn["content"] += ("\n" if turn["content"] else "") + item["content"]
    elif item["type"] == "reasoning":
        thought = item["content"] or item["summary"] or opened(item.get("encrypted_content"))
        if thought:
            turn["reasoning_content"] = turn.get("reasoning_content", "") + thought
    else:
        names[item["call_id"]] = item["name"]
        function = {"name": item["name"], "arguments": item["arguments"]}
        turn["tool_calls"].append({"id": item["call_id"], "type": "function", "function": function})


def _said(item: Item) -> Turn:
    return {"role": item["role"], "content": item["content"]}


def _tool_output(item: Item, names: dict[str, str]) -> Turn:
    turn = {"role": "tool", "tool_call_id": item["call_id"], "content": item["output"]}
    name = names.get(item["call_id"])
    return {**turn, "name": name} if name else turn


def closed(thought: str) -> str:
    """Thinking for a client that keeps it and sends it again: readable by anyone."""
    return base64.b64encode(thought.encode()).decode()


def opened(content: Any) -> str:
    """What closed() made; nothing for what somebody else made."""
    try:
        return base64.b64decode(content or "", validate=True).decode()
    except (TypeError, ValueError, binascii.Error):
        return ""


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: str | dict[str, Any]) -> Any:
    if isinstance(choice, str):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        named = [
            {"type": "function", "function": {"name": tool.get("name")}}
            for tool in (tools if isinstance(tools, list) else [])
            if isinstance(tool, dict) and tool.get("type") == "function"
        ]
        allowed = {"mode": choice.get("mode", "auto"), "tools": named}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    # One of OpenAI's own tools, which are not here.
    return "auto"


def _response_format(body: ResponsesRequest) -> dict[str, Any] | None:
    wanted = body.text.format if body.text is not None else None
    if wanted is None or wanted.get("type") != "json_schema":
        return wanted
    schema = {
        name: wanted[name] for name in ("name", "schema", "strict", "description") if name in wanted
    }
    return {"type": "json_schema", "json_schema": schema}
