"""What the operator set for requests that do not say it themselves."""

from __future__ import annotations

from typing import Any

from mlx_parallm.server.schemas.base import RequestModel
from mlx_parallm.server.schemas.chat import ChatTemplateFields
from mlx_parallm.server.schemas.sampling import SamplingFields
from mlx_parallm.settings import Settings


def with_defaults(value: Any, model: type[RequestModel], settings: Settings) -> Any:
    """A request's JSON, completed by the options --temperature, --chat-template-kwargs and so on.

    Args:
        value: the parsed body; anything but an object is left for validation to refuse.
        model: what the body will be. Bodies that neither sample nor render stay as they are.

    max_tokens is set only where the endpoint has a figure of its own. Elsewhere it depends on
    the prompt's length, see `Prompts.max_tokens`.
    """
    if not isinstance(value, dict):
        return value
    defaults: dict[str, Any] = {}
    if issubclass(model, SamplingFields):
        defaults |= settings.request_defaults
        if settings.max_tokens is not None and model.model_fields["max_tokens"].default is not None:
            defaults["max_tokens"] = settings.max_tokens
    # null means the default, in OpenAI's API and here.
    missing = {name: item for name, item in defaults.items() if value.get(name) is None}
    return {**value, **missing, **_template_variables(value, model, settings)}


def _template_variables(
    value: dict[str, Any], model: type[RequestModel], settings: Settings
) -> dict[str, Any]:
    """The server's variables for the chat template, below the request's own."""
    name = "chat_template_kwargs"
    own = value.get(name) or {}
    if not (settings.chat_template_kwargs and issubclass(model, ChatTemplateFields)):
        return {}
    return {name: {**settings.chat_template_kwargs, **own}} if isinstance(own, dict) else {}
