"""What the operator set for requests that do not say it themselves."""

from __future__ import annotations

from typing import Any

from mlx_parallm.server.schemas.base import RequestModel
from mlx_parallm.server.schemas.chat import ChatTemplateFields
from mlx_parallm.settings import Settings

# Ollama's and llama.cpp's name for it.
_SPELLINGS = {"repetition_penalty": "repeat_penalty"}


def with_defaults(value: Any, model: type[RequestModel], settings: Settings) -> Any:
    """A request's JSON, completed by the options --temperature, --chat-template-kwargs and so on.

    Args:
        value: the parsed body; anything but an object is left for validation to refuse.
        model: what the body will be; only fields that it has are added.

    max_tokens is set only where the endpoint has a figure of its own. Elsewhere it depends on
    the prompt's length, see `Prompts.max_tokens`.
    """
    if not isinstance(value, dict):
        return value
    return {
        **value,
        **_missing(value, model, settings),
        **_inside(value, model, settings),
        **_template_variables(value, model, settings),
    }


def _missing(
    value: dict[str, Any], model: type[RequestModel], settings: Settings
) -> dict[str, Any]:
    """The sampling fields that the model has and the value has not."""
    fields = model.model_fields
    defaults = settings.request_defaults
    if isinstance(getattr(fields.get("max_tokens"), "default", None), int):
        defaults["max_tokens"] = settings.max_tokens
    found: dict[str, Any] = {}
    for name, default in defaults.items():
        spelled = name if name in fields else _SPELLINGS.get(name, name)
        # null means the default, in OpenAI's API and here.
        if spelled in fields and default is not None and value.get(spelled) is None:
            found[spelled] = default
    return found


def _inside(value: dict[str, Any], model: type[RequestModel], settings: Settings) -> dict[str, Any]:
    """The same in `options`, where Ollama's requests have these fields."""
    kind = getattr(model.model_fields.get("options"), "annotation", None)
    given = value.get("options") or {}
    if not (isinstance(kind, type) and issubclass(kind, RequestModel) and isinstance(given, dict)):
        return {}
    missing = _missing(given, kind, settings)
    return {"options": {**given, **missing}} if missing else {}


def _template_variables(
    value: dict[str, Any], model: type[RequestModel], settings: Settings
) -> dict[str, Any]:
    """The server's variables for the chat template, below the request's own."""
    name = "chat_template_kwargs"
    own = value.get(name) or {}
    if not (settings.chat_template_kwargs and issubclass(model, ChatTemplateFields)):
        return {}
    return {name: {**settings.chat_template_kwargs, **own}} if isinstance(own, dict) else {}
