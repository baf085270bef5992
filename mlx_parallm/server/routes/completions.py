"""POST /v1/completions."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.server.adapters import use_adapter
from mlx_parallm.server.flow.generation import Collected, Streamed
from mlx_parallm.server.flow.tracks import completion_tracks
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.input.prefix_namespace import prefix_namespace
from mlx_parallm.server.memories import memory_of
from mlx_parallm.server.openapi import EVENTS, GENERATION_ERRORS, body_of
from mlx_parallm.server.output.completion_format import CompletionFormat
from mlx_parallm.server.output.responses import event_answer, whole_answer
from mlx_parallm.server.schemas.completions import CompletionRequest, CompletionResponse
from mlx_parallm.server.state import state_of

router = APIRouter(tags=["Generation"])


@router.post(
    "/v1/completions",
    summary="Continue a text",
    response_model=CompletionResponse,
    responses={200: EVENTS, **GENERATION_ERRORS},
    openapi_extra=body_of(CompletionRequest),
)
async def create_completion(request: Request) -> Response:
    """Continue one or several prompts, whole or as a stream of server-sent events."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, CompletionRequest, state.settings.max_body_size)
    model, adapter = await state.model_of(body.model)
    tokenizer = state.loaded().tokenizer
    memory = await memory_of(state, body.memory, adapter)
    namespace = prefix_namespace(request, state, body.cache_salt)
    tracks = await completion_tracks(body, prompts, tokenizer, memory=memory, namespace=namespace)
    use_adapter(tracks, adapter)
    style = CompletionFormat(body, model, tokenizer)
    if body.stream:
        return event_answer(state, Streamed(tracks, style))
    return await whole_answer(request, state, Collected(tracks), lambda: style.whole(tracks))
