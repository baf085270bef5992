"""What TRL's VLLMClient calls on `trl vllm-serve`; its paths end with a slash."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.errors import NotOfferedError
from mlx_parallm.server.admin import check_admin
from mlx_parallm.server.flow.generation import Collected
from mlx_parallm.server.gate.undeclared import IGNORES_UNKNOWN
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.openapi import ERRORS, GENERATION_ERRORS, body_of
from mlx_parallm.server.output.responses import json_answer, whole_answer
from mlx_parallm.server.rollouts import trl
from mlx_parallm.server.rollouts.conversations import conversation_ids
from mlx_parallm.server.rollouts.sampling import completion_of, sampled_tracks
from mlx_parallm.server.routes.control import get_world_size, reset_prefix_cache
from mlx_parallm.server.routes.health import health
from mlx_parallm.server.schemas.rollouts.trl import (
    SequenceLogprobsRequest,
    TrlChatRequest,
    TrlGenerateRequest,
)
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(tags=["TRL"])

_NO_NCCL = (
    "Weights come to this server by file, not through NCCL: save the adapter to a folder and "
    "POST /v1/load_lora_adapter with load_inplace, or the whole model and POST /update_weights."
)

router.add_api_route("/health/", health, methods=["GET"], summary="As /health")
router.add_api_route(
    "/get_world_size/", get_world_size, methods=["GET"], summary="As /get_world_size"
)
router.add_api_route(
    "/reset_prefix_cache/", reset_prefix_cache, methods=["POST"], summary="As /reset_prefix_cache"
)


@router.post(
    "/generate/",
    summary="Samples of prompts",
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(TrlGenerateRequest),
)
async def generate(request: Request) -> Response:
    """n of each, with log-probabilities of the distribution that was drawn from."""
    state = state_of(request)
    state.loaded()
    body = await read_body(request, TrlGenerateRequest, state.settings.max_body_size)
    return await _samples(request, state, body, body.prompts)


@router.post(
    "/chat/",
    summary="Samples of conversations",
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(TrlChatRequest),
)
async def chat(request: Request) -> Response:
    """As /generate/, of what the chat template makes of them."""
    state = state_of(request)
    state.loaded()
    body = await read_body(request, TrlChatRequest, state.settings.max_body_size)
    ids = await conversation_ids(state, body.messages, body.tools, body.chat_template_kwargs)
    return await _samples(request, state, body, list(ids))


async def _samples(
    request: Request,
    state: ServerState,
    body: TrlGenerateRequest | TrlChatRequest,
    prompts: list[str | list[int]],
) -> Response:
    names = trl.names_of(body)
    asked = completion_of(state, trl.completion_fields(body, prompts), names)
    _, tracks = await sampled_tracks(request, state, asked, names)
    return await whole_answer(request, state, Collected(tracks), lambda: trl.answer(asked, tracks))


@router.post(
    "/get_sequence_logprobs/",
    summary="What a teacher thinks of sequences",
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(SequenceLogprobsRequest),
)
async def get_sequence_logprobs(request: Request) -> Response:
    """Raw log-probabilities behind each prompt, as JSON or as arrays in base64."""
    state = state_of(request)
    state.loaded()
    body = await read_body(request, SequenceLogprobsRequest, state.settings.max_body_size)
    asked = completion_of(state, trl.scored_fields(body), trl.SCORED_NAMES)
    _, tracks = await sampled_tracks(request, state, asked, trl.SCORED_NAMES)
    return await whole_answer(request, state, Collected(tracks), lambda: trl.scores(body, tracks))


@router.post("/close_communicator/", summary="There is none", responses=ERRORS)
async def close_communicator(request: Request) -> Response:
    """What every VLLMClient calls at its end."""
    check_admin(request, state_of(request).settings)
    return json_answer({"message": "There is no communicator."})


async def refuse_nccl(request: Request) -> Response:
    """Weights are not received through NCCL here."""
    raise NotOfferedError(_NO_NCCL)


for _path in ("/init_communicator/", "/update_named_param/"):
    router.add_api_route(
        _path,
        refuse_nccl,
        methods=["POST"],
        include_in_schema=False,  # known, and not offered
        openapi_extra=IGNORES_UNKNOWN,
    )
