"""Anthropic's Messages API, answered by the same engine."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.server.adapters import use_adapter
from mlx_parallm.server.compat.error_shapes import MESSAGES_PATH, status_for
from mlx_parallm.server.compat.messages_format import MessagesFormat
from mlx_parallm.server.compat.messages_requests import count_tokens, message_tracks
from mlx_parallm.server.flow.generation import Collected, Streamed
from mlx_parallm.server.gate.undeclared import IGNORES_UNKNOWN
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.input.prefix_namespace import prefix_namespace
from mlx_parallm.server.openapi import EVENTS, GENERATION_ERRORS, body_of, with_errors
from mlx_parallm.server.output.responses import (
    MESSAGE_EVENTS,
    event_answer,
    json_answer,
    whole_answer,
)
from mlx_parallm.server.schemas.compat.messages import (
    CountTokensRequest,
    MessagesError,
    MessagesRequest,
    MessagesResponse,
    TokenCount,
)
from mlx_parallm.server.state import state_of

router = APIRouter(prefix=MESSAGES_PATH, tags=["Anthropic"])

_ERRORS: dict[int | str, dict[str, Any]] = {
    status_for(MESSAGES_PATH, int(status)): response
    for status, response in with_errors(GENERATION_ERRORS, MessagesError).items()
}


@router.post(
    "",
    summary="Answer a conversation",
    response_model=MessagesResponse,
    responses={200: EVENTS, **_ERRORS},
    openapi_extra=body_of(MessagesRequest) | IGNORES_UNKNOWN,
)
async def create_message(request: Request) -> Response:
    """Write the next message, whole or as a stream of named events."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, MessagesRequest, state.settings.max_body_size)
    model, adapter = await state.model_of(body.model)
    namespace = prefix_namespace(request, state, None)
    tracks = await message_tracks(body, prompts, state.settings, namespace)
    use_adapter(tracks, adapter)
    style = MessagesFormat(model)
    if body.stream:
        return event_answer(state, Streamed(tracks, style), MESSAGE_EVENTS)
    return await whole_answer(request, state, Collected(tracks), lambda: style.whole(tracks[0]))


@router.post(
    "/count_tokens",
    summary="How many tokens a conversation has",
    response_model=TokenCount,
    responses=_ERRORS,
    openapi_extra=body_of(CountTokensRequest) | IGNORES_UNKNOWN,
)
async def count_message_tokens(request: Request) -> Response:
    """Tokens of the prompt, tools included."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, CountTokensRequest, state.settings.max_body_size)
    state.check_known(body.model)
    return json_answer({"input_tokens": await count_tokens(body, prompts, state.settings)})
