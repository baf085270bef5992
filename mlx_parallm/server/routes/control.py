"""What trainers call between rollouts: pause, resume, abort, sleep, and what is served.

Names and meanings are vLLM's, where it has them.
"""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm import __version__
from mlx_parallm.engine.ranks.events import ForgetPrefixes, Pause
from mlx_parallm.errors import NotFoundError, RequestCancelledError, UnsupportedError
from mlx_parallm.memory.fingerprint import fingerprint_of
from mlx_parallm.server.admin import check_admin, without_folders
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.memories import in_thread
from mlx_parallm.server.openapi import ERRORS, optional_body_of
from mlx_parallm.server.output.responses import json_answer
from mlx_parallm.server.schemas.control import AbortRequests
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(tags=["Control"])

_POLL_S = 0.005
Mode = Literal["abort", "wait", "keep"]


@router.post("/pause", summary="Compute nothing until /resume", responses=ERRORS)
async def pause(request: Request, mode: Mode = "abort", clear_cache: bool = True) -> Response:
    """New requests wait. Running ones are ended (abort), finished (wait) or kept as they are."""
    state = _admin(request)
    await _pause(state, mode)
    if clear_cache and mode != "keep":
        await _reset_prefixes(state)
    return json_answer({"status": "paused"})


@router.post("/resume", summary="Go on after /pause", responses=ERRORS)
async def resume(request: Request) -> Response:
    """Whatever waits is computed."""
    state = _admin(request)
    await _set(state, paused=False)
    state.sleeping = False
    return json_answer({"status": "resumed"})


@router.get("/is_paused", summary="Whether /pause holds", responses=ERRORS)
async def is_paused(request: Request) -> Response:
    """Also while it sleeps."""
    state = _admin(request)
    return json_answer({"is_paused": state.engine.scheduler.paused})


@router.post(
    "/abort_requests",
    summary="End requests",
    responses=ERRORS,
    openapi_extra=optional_body_of(AbortRequests),
)
async def abort_requests(request: Request) -> Response:
    """Those with these ids (x-request-id of POST /generate and /v1/generate), or all."""
    state = _admin(request)
    body = AbortRequests()
    if request.headers.get("content-length", "0") != "0":
        body = await read_body(request, AbortRequests, state.settings.max_body_size)
    error = RequestCancelledError("The request was aborted by the operator.")
    if not body.request_ids:
        state.dispatcher.cancel_all(error)
        return json_answer({"status": "aborted", "request_ids": None})
    found = {one: state.registry.find(one) for one in body.request_ids}
    for request_id, generation in found.items():
        if generation is None:
            raise NotFoundError(f"There is no request {request_id[:200]!r}.", param="request_ids")
    for generation in found.values():
        if generation is not None:
            state.dispatcher.cancel(generation, error)
    return json_answer({"status": "aborted", "request_ids": list(found)})


@router.post("/reset_prefix_cache", summary="Forget all cached prefixes", responses=ERRORS)
async def reset_prefix_cache(request: Request) -> Response:
    """Those that a step is about to use stay until it has."""
    state = _admin(request)
    await _reset_prefixes(state)
    return json_answer({"status": "reset"})


@router.post("/sleep", summary="Finish, and give memory back", responses=ERRORS)
async def sleep(request: Request, level: int = 1) -> Response:
    """Level 1: running requests finish, rows and prefixes are freed, weights stay."""
    state = _admin(request)
    if level != 1:
        raise UnsupportedError("Only level 1 is supported: weights stay loaded.", param="level")
    await _pause(state, "wait")
    await _reset_prefixes(state)
    state.sleeping = True
    return json_answer({"status": "sleeping"})


@router.post("/wake_up", summary="Go on after /sleep", responses=ERRORS)
async def wake_up(request: Request) -> Response:
    """As /resume."""
    return await resume(request)


@router.get("/is_sleeping", summary="Whether /sleep holds", responses=ERRORS)
async def is_sleeping(request: Request) -> Response:
    """Until /wake_up or /resume."""
    return json_answer({"is_sleeping": _admin(request).sleeping})


@router.get("/get_world_size", summary="Devices that compute", responses=ERRORS)
async def get_world_size(request: Request) -> Response:
    """Processes that compute the model together; see --tensor-parallel and
    --pipeline-parallel."""
    return json_answer({"world_size": _admin(request).settings.num_ranks})


@router.get("/server_info", summary="What is served, and how", responses=ERRORS)
async def server_info(
    request: Request, config_format: Literal["text", "json"] = "text"
) -> Response:
    """vLLM's form: its config as JSON, or as one text."""
    state = _admin(request)
    config = _config(state)
    shown: Any = config if config_format == "json" else str(config)
    return json_answer({"vllm_config": shown, "version": __version__})


@router.get("/weight_checker", summary="Checksums of what computes", responses=ERRORS)
async def weight_checker(request: Request) -> Response:
    """The model's fingerprint and version, and every adapter's version and digest."""
    state = _admin(request)
    loaded = state.loaded()
    model = await in_thread(state, lambda: fingerprint_of(loaded))
    adapters = {
        entry.name: {"version": entry.current.version, "digest": entry.current.digest}
        for entry in state.adapters.entries
        if entry.current is not None
    }
    weights = {
        "version": state.versions.current.version,
        "digest": state.versions.current.digest or None,
        "versions": state.versions.versions,
    }
    return json_answer({"model": model, "weights": weights, "adapters": adapters})


def _config(state: ServerState) -> dict[str, Any]:
    loaded, config = state.loaded(), state.engine.config
    return {
        "model_config": {
            "model": without_folders(state.settings.model_path),
            "served_model_name": list(state.settings.model_names),
            "max_model_len": loaded.max_model_len,
            "dtype": loaded.dtype,
        },
        "lora_config": {"max_loras": config.max_loras, "max_lora_rank": config.max_lora_rank},
        "parallel_config": {
            "world_size": state.settings.num_ranks,
            "tensor_parallel_size": state.settings.tensor_parallel,
            "pipeline_parallel_size": state.settings.pipeline_parallel,
            "data_parallel_size": 1,
        },
        "scheduler_config": {"max_num_seqs": config.max_batch_size},
    }


def _admin(request: Request) -> ServerState:
    state = state_of(request)
    check_admin(request, state.settings)
    state.loaded()
    return state


async def _pause(state: ServerState, mode: Mode) -> None:
    if mode == "abort":
        await _set(state, paused=True)
        state.dispatcher.cancel_all(RequestCancelledError("The server was paused."))
        return
    if mode == "wait":
        await _set(state, paused=False, admits=False)
        while await _begun(state):
            await asyncio.sleep(_POLL_S)
    await _set(state, paused=True)


async def _begun(state: ServerState) -> bool:
    """Whether sequences that have begun are not finished yet."""
    scheduler = state.engine.scheduler

    def begun() -> bool:
        return bool(scheduler.running) or any(s.output for s in scheduler.unfinished)

    return await asyncio.wrap_future(state.engine.call(begun))


async def _set(state: ServerState, *, paused: bool, admits: bool = True) -> None:
    await asyncio.wrap_future(state.engine.enter(Pause(paused, admits)))


async def _reset_prefixes(state: ServerState) -> None:
    await asyncio.wrap_future(state.engine.enter(ForgetPrefixes()))
