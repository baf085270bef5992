"""The tools of OpenAI's Responses as functions that models know.

A namespace groups functions under a name of its own. Models see them under one name, and the
call that a client gets has both again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlx_parallm.server.schemas.compat.openai_responses import ResponsesRequest

_SEPARATOR = "__"
_FIELDS = ("description", "parameters", "strict")

_Json = dict[str, Any]


def functions_of(body: ResponsesRequest) -> list[_Json]:
    """The tools that the client runs, in chat's shape; OpenAI's own are not here."""
    return [_function(flat_name(tool["name"], home), tool) for tool, home in _functions(body)]


def shown_tools(body: ResponsesRequest) -> list[_Json]:
    """The tools that are used, as the client wrote them."""
    return [tool for tool in body.tools if tool.get("type") in ("function", "namespace")]


def homes_of(body: ResponsesRequest) -> dict[str, tuple[str, str]]:
    """A model's name of a function -> its namespace and its name in it."""
    return {
        flat_name(tool["name"], home): (home, tool["name"])
        for tool, home in _functions(body)
        if home is not None
    }


def flat_name(name: str, namespace: Any) -> str:
    """The name under which a model sees a function."""
    return f"{namespace}{_SEPARATOR}{name}" if isinstance(namespace, str) else name


def tool_choice(choice: str | _Json) -> Any:
    """The same in chat's shape."""
    if isinstance(choice, str):
        return choice
    if choice.get("type") == "function":
        return _named(choice)
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        named = [
            _named(tool)
            for tool in (tools if isinstance(tools, list) else [])
            if isinstance(tool, dict) and tool.get("type") == "function"
        ]
        allowed = {"mode": choice.get("mode", "auto"), "tools": named}
        return {"type": "allowed_tools", "allowed_tools": allowed}
    # One of OpenAI's own tools, which are not here.
    return "auto"


def _functions(body: ResponsesRequest) -> Iterator[tuple[_Json, str | None]]:
    """Each function, and the namespace that it is in."""
    for tool in body.tools:
        if tool.get("type") == "function":
            yield tool, None
        elif tool.get("type") == "namespace":
            yield from ((inner, tool["name"]) for inner in tool["tools"] if _is_function(inner))


def _is_function(tool: _Json) -> bool:
    return tool.get("type") == "function"


def _function(name: str, tool: _Json) -> _Json:
    given = {field: tool[field] for field in _FIELDS if tool.get(field) is not None}
    return {"type": "function", "function": {"name": name, **given}}


def _named(choice: _Json) -> _Json:
    name = choice.get("name")
    flat = flat_name(name, choice.get("namespace")) if isinstance(name, str) else name
    return {"type": "function", "function": {"name": flat}}
