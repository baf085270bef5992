"""Conversations as prompts of token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlx_parallm.errors import UnsupportedError
from mlx_parallm.server.compat.translation import named
from mlx_parallm.server.input.body import validate
from mlx_parallm.server.input.pictures.messages import pictures_of
from mlx_parallm.server.input.request_defaults import with_defaults
from mlx_parallm.server.schemas.chat import ChatCompletionRequest, Tool
from mlx_parallm.server.state import ServerState


async def conversation_ids(
    state: ServerState,
    conversations: Sequence[list[Any]],
    tools: Sequence[Tool],
    chat_template_kwargs: dict[str, Any],
) -> list[list[int]]:
    """What the chat template makes of each.

    Raises:
        InvalidRequestError, ContextLengthError: one cannot be a prompt; `param` names its place.
    """
    shared = {
        "tools": [tool.model_dump(exclude_none=True) for tool in tools],
        "chat_template_kwargs": chat_template_kwargs,
    }
    found = []
    for place, messages in enumerate(conversations):
        with named({"messages": f"messages.{place}"}):
            fields = {"messages": messages, **shared}
            given = with_defaults(fields, ChatCompletionRequest, state.settings)
            body = validate(ChatCompletionRequest, given)
            pictures = pictures_of(body.messages)
            if pictures:
                raise UnsupportedError(
                    "Pictures and videos are not supported here: this endpoint's prompts are "
                    "token ids.",
                    param=pictures[0].param,
                )
            prompt = await state.prompts().chat(body)
        found.append(prompt.ids)
    return found
