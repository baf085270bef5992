"""POST /generate, GET and DELETE /status/{id}, GET /model_info."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.cpu import blas
from mlx_parallm.errors import InvalidRequestError, NotFoundError, RequestCancelledError
from mlx_parallm.server.adapters import use_adapter
from mlx_parallm.server.admin import without_folders
from mlx_parallm.server.flow.generation import Collected, Generation, Streamed, Track
from mlx_parallm.server.flow.tracks import text_tracks
from mlx_parallm.server.handlers import CLIENT_CLOSED_REQUEST, request_id_of
from mlx_parallm.server.input.body import parse_json, read_body, read_bytes, with_body
from mlx_parallm.server.input.prefix_namespace import prefix_namespace
from mlx_parallm.server.memories import memory_of
from mlx_parallm.server.openapi import ERRORS, EVENTS, GENERATION_ERRORS, body_of
from mlx_parallm.server.output.generate_format import GenerateFormat
from mlx_parallm.server.output.json_text import FiniteJSONResponse
from mlx_parallm.server.output.responses import event_answer, json_answer, whole_answer
from mlx_parallm.server.routes.rollouts.sglang import generate_as_sglang
from mlx_parallm.server.routes.rollouts.vllm import generate_as_vllm
from mlx_parallm.server.schemas.generate import (
    DEFAULT_CANDIDATES,
    GenerateRequest,
    GenerateResponse,
    StatusResponse,
)
from mlx_parallm.server.schemas.rollouts.sglang import SglangGenerateRequest, SglangSample
from mlx_parallm.server.schemas.rollouts.vllm import VllmGenerateRequest, VllmGenerateResponse
from mlx_parallm.server.state import state_of

router = APIRouter(tags=["Generation with figures"])


@router.post(
    "/generate",
    summary="Continue a text, with every figure measured",
    response_model=GenerateResponse | VllmGenerateResponse | SglangSample | list[SglangSample],
    responses={200: EVENTS, **GENERATION_ERRORS},
    openapi_extra=body_of(GenerateRequest, VllmGenerateRequest, SglangGenerateRequest),
)
async def generate(request: Request) -> Response:
    """One prompt; the answer's request_id is the request's x-request-id.

    SGLang's form is told by `text` or `input_ids`, vLLM's by `logprobs` or a prompt that is an
    object: those are answered as they answer.
    """
    body = bytes(await read_bytes(request, state_of(request).settings.max_body_size))
    value = parse_json(body)
    again = with_body(request, body)
    if isinstance(value, Mapping) and ("text" in value or "input_ids" in value):
        return await generate_as_sglang(again)
    if isinstance(value, Mapping) and _is_vllms(value):
        return await generate_as_vllm(again)
    return await _with_figures(again)


def _is_vllms(value: Mapping[str, Any]) -> bool:
    return isinstance(value.get("prompt"), Mapping) or value.get("logprobs") is not None


async def _with_figures(request: Request) -> Response:
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, GenerateRequest, state.settings.max_body_size)
    _, adapter = await state.model_of(body.model)
    candidates = body.top_k if body.top_k > 0 else DEFAULT_CANDIDATES
    shown = min(candidates, state.loaded().vocab_size) if body.include_top_k_candidates else 0
    memory = await memory_of(state, body.memory, adapter)
    namespace = prefix_namespace(request, state, body.cache_salt)
    tracks = await text_tracks(
        [body.prompt], body, prompts, logprobs=shown, memory=memory, namespace=namespace
    )
    use_adapter(tracks, adapter)
    request_id = request_id_of(request.scope)
    style = GenerateFormat(body, request_id, state.loaded().tokenizer)
    generation: Generation
    if body.stream:
        generation = streamed = Streamed(tracks, style)
    else:
        generation = collected = Collected(tracks)
    style.about(generation)
    state.registry.add(request_id, generation)
    if body.stream:
        return event_answer(state, streamed)
    return await whole_answer(request, state, collected, style.whole)


@router.get(
    "/status/{request_id}",
    summary="How far a generation is",
    response_model=StatusResponse,
    responses=ERRORS,
)
async def status(request: Request, request_id: str) -> Response:
    """By the id that POST /generate answered with, or was sent as x-request-id."""
    registry = state_of(request).registry
    generation, part = registry.find(request_id), registry.find_part(request_id)
    if generation is None and part is not None:
        return json_answer(_progress(part[0], [part[1]]))
    if generation is None:
        answer = {"status": "not_found", "tokens_generated": 0, "tokens_remaining": 0}
        return FiniteJSONResponse(answer | _unknown(request_id).envelope(), status_code=404)
    return json_answer(_progress(generation, generation.tracks))


@router.delete(
    "/status/{request_id}",
    summary="Cancel a generation",
    response_model=StatusResponse,
    responses=ERRORS,
)
async def cancel(request: Request, request_id: str) -> Response:
    """End it now; its request is answered with an error. One that has ended stays as it is."""
    state = state_of(request)
    generation = state.registry.find(request_id)
    if generation is None and state.registry.find_part(request_id) is not None:
        whole = request_id.rpartition("-")[0]
        raise InvalidRequestError(
            f"This text is one of several; cancel all of them with {whole[:200]!r}.",
            param="request_id",
        )
    if generation is None:
        raise _unknown(request_id)
    if not generation.ended:
        state.dispatcher.cancel(generation, RequestCancelledError("The request was cancelled."))
    return json_answer(_progress(generation, generation.tracks))


@router.get("/model_info", summary="The model and what it runs on", responses=ERRORS)
async def model_info(request: Request) -> Response:
    """The model's config, device, types, BLAS and cache sizes."""
    state = state_of(request)
    loaded, stats, info = state.loaded(), state.engine.stats(), blas.info()
    return json_answer(
        {
            "config": loaded.config,
            "device": str(mx.default_device()),
            "model": without_folders(loaded.path),
            "dtype": loaded.dtype,
            "quantization": loaded.quantization,
            "num_parameters": loaded.num_parameters,
            "weight_bytes": loaded.nbytes,
            "max_model_len": loaded.max_model_len,
            "vocab_size": loaded.vocab_size,
            "blas": {"name": info.name, "path": info.path, "source": info.source},
            "cache": {
                "kv_tokens": stats.kv_tokens_total,
                "kv_tokens_used": stats.kv_tokens_used,
                "kv_bytes": stats.kv_bytes,
                "prefix_pages": stats.prefix_pages,
                "prefix_bytes": stats.prefix_bytes,
            },
        }
    )


def _unknown(request_id: str) -> NotFoundError:
    return NotFoundError(f"There is no request {request_id[:200]!r}.", param="request_id")


def _progress(generation: Generation, tracks: Sequence[Track]) -> dict[str, Any]:
    generated = sum(len(track.token_ids) for track in tracks)
    most = sum(track.sequence.params.max_tokens for track in tracks)
    ended = generation.ended or all(track.finish_reason is not None for track in tracks)
    return {
        "status": _state(generation) if ended else "processing",
        "tokens_generated": generated,
        "tokens_remaining": 0 if ended else most - generated,
    }


def _state(generation: Generation) -> str:
    """How a generation ended; a client that left has cancelled its own."""
    if generation.error is None:
        return "completed"
    by_client = (RequestCancelledError.status, CLIENT_CLOSED_REQUEST)
    return "cancelled" if generation.error.status in by_client else "failed"
