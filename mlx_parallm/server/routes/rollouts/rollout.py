"""POST /v1/rl/rollout."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.server.flow.generation import Generation
from mlx_parallm.server.handlers import request_id_of
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.input.prefix_namespace import prefix_namespace
from mlx_parallm.server.openapi import GENERATION_ERRORS, JSON_LINES, body_of
from mlx_parallm.server.output.responses import LINES, event_answer, whole_answer
from mlx_parallm.server.rollouts.conversations import conversation_ids
from mlx_parallm.server.rollouts.rewards import CollectedRollouts, StreamedRollouts, judge_of
from mlx_parallm.server.rollouts.rollout_format import RolloutFormat
from mlx_parallm.server.rollouts.sampling import sampled_tracks
from mlx_parallm.server.schemas.rollouts.rollout import RolloutRequest, RolloutResponse
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(tags=["Rollouts"])


@router.post(
    "/v1/rl/rollout",
    summary="Groups of samples for a trainer",
    response_model=RolloutResponse,
    responses={200: JSON_LINES, **GENERATION_ERRORS},
    openapi_extra=body_of(RolloutRequest),
)
async def rollout(request: Request) -> Response:
    """Each sample with its tokens, both log-probabilities, versions and finish reason.

    A stream has a JSON object a line: the samples in the order in which they end, then one
    with the usage.
    """
    state = state_of(request)
    state.loaded()
    body = await read_body(request, RolloutRequest, state.settings.max_body_size)
    namespace = prefix_namespace(request, state, body.cache_salt)
    judge = judge_of(state, body.reward_model, body.priority, namespace)
    asked = await _with_prompts(state, body)
    model, tracks = await sampled_tracks(request, state, asked)
    style = RolloutFormat(body, model, judge)
    generation: Generation
    if body.stream:
        generation = streamed = StreamedRollouts(tracks, style, judge)
    else:
        generation = collected = CollectedRollouts(tracks, judge)
    state.registry.add(request_id_of(request.scope), generation)
    if body.stream:
        return event_answer(state, streamed, LINES)
    return await whole_answer(request, state, collected, lambda: style.whole(tracks))


async def _with_prompts(state: ServerState, body: RolloutRequest) -> RolloutRequest:
    """The request with its conversations as token ids."""
    if not body.messages:
        return body
    ids = await conversation_ids(state, body.messages, body.tools, body.chat_template_kwargs)
    return body.model_copy(update={"prompt": ids})
