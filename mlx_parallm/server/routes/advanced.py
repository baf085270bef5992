"""POST /v1/generate, /v1/generate_batch and /v1/configure, GET /v1/stats."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.server.adapters import use_adapter
from mlx_parallm.server.admin import check_admin
from mlx_parallm.server.flow.generation import Collected, Generation, Streamed, Track
from mlx_parallm.server.flow.registry import part_id
from mlx_parallm.server.flow.tracks import text_tracks
from mlx_parallm.server.handlers import request_id_of
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.input.prefix_namespace import prefix_namespace
from mlx_parallm.server.memories import memory_of
from mlx_parallm.server.openapi import ERRORS, EVENTS, GENERATION_ERRORS, body_of, optional_body_of
from mlx_parallm.server.output.responses import event_answer, json_answer, whole_answer
from mlx_parallm.server.output.text_events import TextEvents
from mlx_parallm.server.schemas.configure import ConfigureQuery, ConfigureRequest
from mlx_parallm.server.schemas.generate import (
    EngineGenerateRequest,
    EngineGenerateResponse,
    GenerateBatchRequest,
    GenerateBatchResponse,
    StatsResponse,
)
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(tags=["Engine"])


@router.post(
    "/v1/generate",
    summary="Continue one text",
    response_model=EngineGenerateResponse,
    responses={200: EVENTS, **GENERATION_ERRORS},
    openapi_extra=body_of(EngineGenerateRequest),
)
async def generate(request: Request) -> Response:
    """One prompt, whole or as a stream of its pieces."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, EngineGenerateRequest, state.settings.max_body_size)
    _, adapter = await state.model_of(body.model)
    memory = await memory_of(state, body.memory, adapter)
    namespace = prefix_namespace(request, state, body.cache_salt)
    tracks = await text_tracks([body.prompt], body, prompts, memory=memory, namespace=namespace)
    use_adapter(tracks, adapter)
    request_id = request_id_of(request.scope)
    generation: Generation
    if body.stream:
        generation = streamed = Streamed(tracks, TextEvents(request_id))
        state.registry.add(request_id, generation)
        return event_answer(state, streamed)
    generation = collected = Collected(tracks)
    state.registry.add(request_id, generation)
    return await whole_answer(
        request, state, collected, lambda: _result(request_id, collected, tracks[0])
    )


@router.post(
    "/v1/generate_batch",
    summary="Continue several texts",
    response_model=GenerateBatchResponse,
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(GenerateBatchRequest),
)
async def generate_batch(request: Request) -> Response:
    """Several prompts with the same settings, answered together."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, GenerateBatchRequest, state.settings.max_body_size)
    _, adapter = await state.model_of(body.model)
    memory = await memory_of(state, body.memory, adapter)
    namespace = prefix_namespace(request, state, body.cache_salt)
    tracks = await text_tracks(body.prompts, body, prompts, memory=memory, namespace=namespace)
    use_adapter(tracks, adapter)
    request_id, generation = request_id_of(request.scope), Collected(tracks)
    state.registry.add(request_id, generation)

    def answer() -> dict[str, Any]:
        results = [_result(part_id(request_id, t.index), generation, t) for t in tracks]
        tokens = sum(r["prompt_tokens"] + r["generated_tokens"] for r in results)
        latency = _latency(generation)
        return {
            "request_id": request_id,
            "results": results,
            "total_tokens": tokens,
            "latency": latency,
        }

    return await whole_answer(request, state, generation, answer)


@router.get(
    "/v1/stats", summary="Counters since start", response_model=StatsResponse, responses=ERRORS
)
async def stats(request: Request) -> Response:
    """Requests, batches, speculation and the prefix cache."""
    return json_answer(_stats(state_of(request)))


@router.post(
    "/v1/configure",
    summary="Change the running engine",
    responses=ERRORS,
    openapi_extra=optional_body_of(ConfigureRequest),
)
async def configure(request: Request, query: Annotated[ConfigureQuery, Query()]) -> Response:
    """Options in the query, a JSON body, or both. All of them are applied, or none.

    Applied between two steps; what is not named stays. Answers with what holds then.
    """
    state = state_of(request)
    state.loaded()
    check_admin(request, state.settings, anywhere=True)
    options = await _options(request, query, state.settings.max_body_size)
    if options.get("use_speculative_decoding") and not state.engine.can_speculate:
        raise UnsupportedError(
            "This model cannot guess ahead: nothing was changed.",
            param="use_speculative_decoding",
        )
    done = state.engine.configure(
        max_batch_size=options.get("max_batch_size"),
        prefill_chunk=options.get("prefill_chunk"),
        speculate=options.get("use_speculative_decoding"),
        num_draft_tokens=options.get("max_draft_tokens"),
    )
    await asyncio.wrap_future(done)
    if "batch_timeout_ms" in options:
        state.queue.batch_timeout_s = options["batch_timeout_ms"] / 1e3
    config = state.engine.config
    return json_answer(
        {
            "status": "configured",
            "config": {
                "use_speculative_decoding": state.engine.speculating,
                "max_batch_size": config.max_batch_size,
                "max_draft_tokens": config.num_draft_tokens,
                "prefill_chunk": config.prefill_chunk,
                "batch_timeout_ms": state.queue.batch_timeout_s * 1e3,
            },
        }
    )


async def _options(request: Request, query: ConfigureQuery, limit: int) -> dict[str, Any]:
    """What the query and the body ask for together.

    Raises:
        InvalidRequestError: the same option in both, or the body is wrong.
    """
    asked = query.model_dump(exclude_none=True)
    length = request.headers.get("content-length", "0")
    if length != "0" or "transfer-encoding" in request.headers:
        body = (await read_body(request, ConfigureRequest, limit)).model_dump(exclude_none=True)
        for name in body:
            if name in asked:
                raise InvalidRequestError(f"{name} is in the query and in the body.", param=name)
        asked |= body
    return asked


def _result(request_id: str, generation: Generation, track: Track) -> dict[str, Any]:
    answer = {
        "request_id": request_id,
        "text": track.text,
        "tokens": track.token_ids,
        "finish_reason": track.finish_reason,
        "prompt_tokens": len(track.prompt.ids),
        "generated_tokens": len(track.token_ids),
        "latency": _latency(generation),
    }
    return answer if track.cited is None else {**answer, "citations": track.cited}


def _latency(generation: Generation) -> float:
    return (generation.ended_at or generation.submitted_at) - generation.submitted_at


def _stats(state: ServerState) -> dict[str, Any]:
    engine, speculation = state.engine.stats(), state.engine.speculative_stats()
    requests, seconds = state.metrics.latencies
    rate = speculation.acceptance_rate if speculation else 0.0
    mean = speculation.mean_accepted_length if speculation else 0.0
    return {
        "total_requests": requests,
        "average_latency": seconds / requests if requests else 0.0,
        "batching_stats": {
            # Batches are the steps that gave tokens; prompts alone are computed beside them.
            "total_batches": engine.decode_steps,
            "avg_batch_size": engine.decode_rows / max(1, engine.decode_steps),
            "total_tokens": engine.prompt_tokens + engine.generated_tokens,
            "running": engine.running,
            "waiting": engine.waiting,
            "preemptions": engine.preemptions,
        },
        "speculative_stats": {
            "acceptance_rate": rate,
            "draft_length": engine.draft_length,
            "mean_accepted_length": mean,
            "drafted_tokens": engine.drafted_tokens,
            "accepted_tokens": engine.accepted_tokens,
            "draft_time": engine.draft_time,
        },
        "prefix_cache_stats": {
            "lookups": engine.prefix_lookups,
            "hits": engine.prefix_hits,
            "hit_tokens": engine.prefix_hit_tokens,
            "pages": engine.prefix_pages,
            "bytes": engine.prefix_bytes,
            "evicted_pages": engine.prefix_evicted_pages,
        },
    }
