"""/v1/adapters, and vLLM's /v1/load_lora_adapter and /v1/unload_lora_adapter."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from mlx_parallm.server.adapters import Entry
from mlx_parallm.server.admin import check_admin
from mlx_parallm.server.input.body import read_body, read_raw
from mlx_parallm.server.openapi import ERRORS, body_of, optional_body_of
from mlx_parallm.server.output.responses import json_answer
from mlx_parallm.server.schemas.adapters import (
    AdapterCard,
    AdapterDeleted,
    AdapterList,
    AddAdapterRequest,
    LoadLoraRequest,
    RollBackRequest,
    UnloadLoraRequest,
)
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(tags=["Adapters"])

_WEIGHTS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


@router.get("/v1/adapters", summary="All adapters", response_model=AdapterList, responses=ERRORS)
async def list_adapters(request: Request) -> Response:
    """Those that were named at start, and those that came later."""
    state = state_of(request)
    config = state.engine.config
    cards = [card(state, entry) for entry in state.adapters.entries]
    bounds = {"max_loras": config.max_loras, "max_lora_rank": config.max_lora_rank}
    return json_answer({"object": "list", **bounds, "data": cards})


@router.get(
    "/v1/adapters/{name}", summary="One adapter", response_model=AdapterCard, responses=ERRORS
)
async def get_adapter(request: Request, name: str) -> Response:
    """One adapter by its name."""
    state = state_of(request)
    return json_answer(card(state, state.adapters.entry(name)))


@router.post(
    "/v1/adapters",
    summary="Load an adapter, or a new version of one",
    response_model=AdapterCard,
    responses=ERRORS,
    openapi_extra=body_of(AddAdapterRequest),
)
async def add_adapter(request: Request) -> Response:
    """Requests name it as their model from now on. Running ones keep the version they have."""
    state = _admin(request)
    body = await read_body(request, AddAdapterRequest, state.settings.max_body_size)
    entry = await state.adapters.add(
        body.name, body.path, replace=body.replace, running=body.running
    )
    return json_answer(card(state, entry))


@router.put(
    "/v1/adapters/{name}/weights",
    summary="New weights for an adapter",
    response_model=AdapterCard,
    responses=ERRORS,
    openapi_extra=_WEIGHTS_BODY,
)
async def put_weights(
    request: Request, name: str, running: Literal["finish", "keep", "recompute"] = "finish"
) -> Response:
    """A safetensors file as the body; its settings stay. What is wrong changes nothing.

    `?running=` says what becomes of requests that run, as in POST /v1/adapters.
    """
    state = _admin(request)
    data = await read_raw(request, state.settings.max_body_size)
    return json_answer(card(state, await state.adapters.update(name, data, running)))


@router.post(
    "/v1/adapters/{name}/rollback",
    summary="An earlier version again",
    response_model=AdapterCard,
    responses=ERRORS,
    openapi_extra=optional_body_of(RollBackRequest),
)
async def roll_back(request: Request, name: str) -> Response:
    """New requests get a version that is still kept."""
    state = _admin(request)
    body = RollBackRequest(version=None)
    if request.headers.get("content-length", "0") != "0":
        body = await read_body(request, RollBackRequest, state.settings.max_body_size)
    return json_answer(card(state, state.adapters.roll_back(name, body.version)))


@router.delete(
    "/v1/adapters/{name}",
    summary="Forget an adapter",
    response_model=AdapterDeleted,
    responses=ERRORS,
)
async def delete_adapter(request: Request, name: str) -> Response:
    """Running requests go on with it to their end."""
    state = _admin(request)
    state.adapters.remove(name)
    return json_answer({"id": name, "object": "adapter", "deleted": True})


@router.post(
    "/v1/load_lora_adapter",
    summary="vLLM's way to load an adapter",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **ERRORS},
    openapi_extra=body_of(LoadLoraRequest),
)
async def load_lora_adapter(request: Request) -> Response:
    """As POST /v1/adapters."""
    state = _admin(request)
    body = await read_body(request, LoadLoraRequest, state.settings.max_body_size)
    if body.base_model_name is not None:
        state.check_model(body.base_model_name)
    await state.adapters.add(body.lora_name, body.lora_path, replace=body.load_inplace)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post(
    "/load_lora_adapter",
    summary="prime-rl's way to load an adapter",
    responses=ERRORS,
    openapi_extra=body_of(LoadLoraRequest),
)
async def load_lora_in_place(request: Request) -> Response:
    """As POST /v1/load_lora_adapter with load_inplace."""
    state = _admin(request)
    body = await read_body(request, LoadLoraRequest, state.settings.max_body_size)
    await state.adapters.add(body.lora_name, body.lora_path, replace=True)
    return json_answer({"status": "ok"})


@router.post(
    "/v1/unload_lora_adapter",
    summary="vLLM's way to forget an adapter",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **ERRORS},
    openapi_extra=body_of(UnloadLoraRequest),
)
async def unload_lora_adapter(request: Request) -> Response:
    """As DELETE /v1/adapters/{name}."""
    state = _admin(request)
    body = await read_body(request, UnloadLoraRequest, state.settings.max_body_size)
    state.adapters.remove(body.lora_name)
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")


def card(state: ServerState, entry: Entry) -> dict[str, Any]:
    """An adapter as answers show it."""
    current = entry.current
    return {
        "id": entry.name,
        "object": "adapter",
        "created": entry.created,
        "parent": state.settings.model_names[0],
        "path": entry.path,
        "version": current.version if current else None,
        "versions": list(entry.versions),
        "rank": current.weights.rank if current else None,
        "bytes": current.weights.nbytes if current else None,
        "digest": current.digest if current else None,
        "resident": bool(current and current.is_resident),
    }


def _admin(request: Request) -> ServerState:
    state = state_of(request)
    check_admin(request, state.settings)
    state.loaded()
    return state
