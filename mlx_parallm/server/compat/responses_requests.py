"""OpenAI's Responses as chats of ours."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Sequence
from typing import Any

from mlx_parallm.server.compat.responses_tools import flat_name, functions_of, tool_choice
from mlx_parallm.server.compat.translation import translated
from mlx_parallm.server.compat.turns import Turn, content_of, in_order
from mlx_parallm.server.flow.generation import Track
from mlx_parallm.server.flow.tracks import chat_tracks
from mlx_parallm.server.input.chat_template import effort_variables
from mlx_parallm.server.input.prefix_namespace import Namespace
from mlx_parallm.server.input.prompts import Prompts
from mlx_parallm.server.input.request_defaults import with_defaults
from mlx_parallm.server.schemas.chat import ChatCompletionRequest
from mlx_parallm.server.schemas.compat.openai_responses import (
    Item,
    ResponsesRequest,
    SamplingExtras,
    parts_of,
)
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


async def count_input_tokens(
    body: ResponsesRequest, earlier: list[Item], prompts: Prompts, settings: Settings
) -> int:
    """Tokens of the prompt; arguments and errors as of response_tracks()."""
    return len((await prompts.chat(_chat(body, earlier, prompts, settings))).ids)


def _chat(
    body: ResponsesRequest, earlier: list[Item], prompts: Prompts, settings: Settings
) -> ChatCompletionRequest:
    tools = functions_of(body)
    with_logprobs = wants_logprobs(body)
    fields: dict[str, Any] = {
        "messages": list(in_order(_turns(body.instructions, earlier, body.input))),
        "tools": tools,
        "tool_choice": tool_choice(body.tool_choice) if tools else None,
        "parallel_tool_calls": body.parallel_tool_calls,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": with_logprobs,
        "top_logprobs": body.top_logprobs if with_logprobs else None,
        "stream": body.stream,
        "response_format": _response_format(body),
        "chat_template_kwargs": {
            **effort_variables(
                prompts.tokenizer, body.reasoning.effort if body.reasoning is not None else None
            ),
            **body.chat_template_kwargs,
        },
        **{name: getattr(body, name) for name in SamplingExtras.model_fields},
    }
    fields = {name: value for name, value in fields.items() if value is not None}
    return translated(
        ChatCompletionRequest, with_defaults(fields, ChatCompletionRequest, settings), _NAMES
    )


def wants_logprobs(body: ResponsesRequest) -> bool:
    """Whether the log-probabilities of the text are asked for."""
    return WITH_LOGPROBS in body.include or bool(body.top_logprobs)


def _turns(
    instructions: str | None, earlier: Sequence[Item], items: Sequence[Item]
) -> Iterator[Turn]:
    if instructions:
        yield {"role": "system", "content": instructions}
    waiting: Turn | None = None
    names: dict[str, str] = {}
    paths = ["previous_response_id"] * len(earlier) + [f"input.{n}" for n in range(len(items))]
    for item, path in zip([*earlier, *items], paths, strict=True):
        if _is_of_assistant(item):
            waiting = waiting or {"role": "assistant", "content": "", "tool_calls": []}
            _add(waiting, item, names)
            continue
        if waiting is not None:
            yield waiting
            waiting = None
        yield _tool_output(item, names, path) if item["type"] != "message" else _said(item, path)
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
        name = flat_name(item["name"], item.get("namespace"))
        names[item["call_id"]] = name
        function = {"name": name, "arguments": item["arguments"]}
        turn["tool_calls"].append({"id": item["call_id"], "type": "function", "function": function})


def _said(item: Item, path: str) -> Turn:
    parts = parts_of(item["content"], f"{path}.content")
    return {"role": item["role"], "content": content_of(parts)}


def _tool_output(item: Item, names: dict[str, str], path: str) -> Turn:
    content = content_of(parts_of(item["output"], f"{path}.output"))
    turn = {"role": "tool", "tool_call_id": item["call_id"], "content": content}
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


def _response_format(body: ResponsesRequest) -> dict[str, Any] | None:
    wanted = body.text.format if body.text is not None else None
    if wanted is None or wanted.get("type") != "json_schema":
        return wanted
    schema = {
        name: wanted[name] for name in ("name", "schema", "strict", "description") if name in wanted
    }
    return {"type": "json_schema", "json_schema": schema}
