"""POST /inference/v1/generate, and /generate in vLLM's form."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.server.flow.generation import Collected, Generation, Streamed
from mlx_parallm.server.handlers import request_id_of
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.openapi import EVENTS, GENERATION_ERRORS, body_of
from mlx_parallm.server.output.responses import event_answer, whole_answer
from mlx_parallm.server.rollouts.sampling import completion_of, sampled_tracks
from mlx_parallm.server.rollouts.vllm_format import TokenFormat, api_server_answer
from mlx_parallm.server.schemas.rollouts.vllm import TokenGenerateRequest, VllmGenerateRequest
from mlx_parallm.server.state import state_of

router = APIRouter(tags=["Rollouts"])

# What SamplingParams have that says only how vLLM computes, or belongs to text alone.
_WITHOUT_EFFECT = ("detokenize", "flat_logprobs", "extra_args", "spaces_between_special_tokens")
_OUTSIDE = ("model", "prompt", "stream", "stream_options", "cache_salt", "priority", "echo")


@router.post(
    "/inference/v1/generate",
    summary="Token ids in, token ids out",
    responses={200: EVENTS, **GENERATION_ERRORS},
    openapi_extra=body_of(TokenGenerateRequest),
)
async def generate_tokens(request: Request) -> Response:
    """vLLM's. Log-probabilities by token id; `weight_versions` as spans of tokens."""
    state = state_of(request)
    state.loaded()
    body = await read_body(request, TokenGenerateRequest, state.settings.max_body_size)
    names = {name: f"sampling_params.{name}" for name in body.sampling_params}
    names["prompt"] = "token_ids"
    asked = completion_of(state, _fields(body), names)
    model, tracks = await sampled_tracks(request, state, asked, names)
    request_id = request_id_of(request.scope)
    style = TokenFormat(body, asked, request_id, model, state.loaded().tokenizer)
    generation: Generation
    if body.stream:
        generation = streamed = Streamed(tracks, style)
    else:
        generation = collected = Collected(tracks)
    state.registry.add(body.request_id or request_id, generation)
    if body.stream:
        return event_answer(state, streamed)
    return await whole_answer(request, state, collected, lambda: style.whole(tracks))


def _fields(body: TokenGenerateRequest) -> dict[str, Any]:
    """The request as a completion of ours; what does not belong to sampling_params is refused."""
    given = {k: v for k, v in body.sampling_params.items() if k not in _WITHOUT_EFFECT}
    misplaced = {f"sampling_params.{name}": given.pop(name) for name in _OUTSIDE if name in given}
    return {
        **given,
        **misplaced,
        "model": body.model,
        "prompt": [body.token_ids],
        "stream": body.stream,
        "cache_salt": body.cache_salt,
        "priority": body.priority,
    }


async def generate_as_vllm(request: Request) -> Response:
    """/generate of vLLM's api_server: n samples of one prompt."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, VllmGenerateRequest, state.settings.max_body_size)
    _, tracks = await sampled_tracks(request, state, body, default_max_tokens=16)
    generation = Collected(tracks)
    state.registry.add(request_id_of(request.scope), generation)
    prompt = tracks[0].prompt
    text = prompts.text_of(prompt.ids, False) if prompt.text is None else prompt.text
    return await whole_answer(
        request, state, generation, lambda: api_server_answer(body, tracks, text)
    )
