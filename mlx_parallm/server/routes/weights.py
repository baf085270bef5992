"""/v1/models/{id}/weights, and vLLM's calls for the same."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.engine.weights import Running
from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.server.admin import check_admin
from mlx_parallm.server.input.body import parse_json, read_body, read_raw, validate
from mlx_parallm.server.openapi import ERRORS, body_of, optional_body_of
from mlx_parallm.server.output.responses import json_answer
from mlx_parallm.server.schemas.weights import (
    FinishUpdateRequest,
    InitTransferRequest,
    PutWeightsRequest,
    RollBackWeightsRequest,
    StartUpdateRequest,
    UpdateWeightsRequest,
    WeightInfo,
    WeightsCard,
    WeightsMessage,
)
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(tags=["Weights"])

_AS_TYPED = ("", "application/x-www-form-urlencoded")
_BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


def _either_body() -> dict[str, Any]:
    extra = body_of(PutWeightsRequest)
    extra["requestBody"]["content"]["application/octet-stream"] = _BINARY
    return extra


@router.get(
    "/v1/models/{model_id:path}/weights",
    summary="Which version of the weights is served",
    response_model=WeightsCard,
    responses=ERRORS,
)
async def get_weights(request: Request, model_id: str) -> Response:
    """The version in use, and those that can be rolled back to."""
    state = state_of(request)
    state.loaded()
    return json_answer(_card(state, _base_model(state, model_id)))


@router.put(
    "/v1/models/{model_id:path}/weights",
    summary="New weights for the whole model",
    response_model=WeightsCard,
    responses=ERRORS,
    openapi_extra=_either_body(),
)
async def put_weights(request: Request, model_id: str, running: Running = "finish") -> Response:
    """A safetensors file as the body, or JSON with a path. What is wrong changes nothing.

    `?running=` of a file says what becomes of requests that run; JSON has a field for it.
    """
    state = _admin(request)
    model = _base_model(state, model_id)
    data = await read_raw(request, state.versions.most_bytes)
    if _is_json(request, data):
        body = validate(PutWeightsRequest, parse_json(data))
        put = await state.versions.put_path(body.path, body.running)
    else:
        put = await state.versions.put_body(data, running)
    return json_answer(_card(state, model) | {"switched": put.switched})


@router.post(
    "/v1/models/{model_id:path}/weights/rollback",
    summary="Earlier weights again",
    response_model=WeightsCard,
    responses=ERRORS,
    openapi_extra=optional_body_of(RollBackWeightsRequest),
)
async def roll_back(request: Request, model_id: str) -> Response:
    """A version that is still kept; without one, the one before."""
    state = _admin(request)
    model = _base_model(state, model_id)
    body = RollBackWeightsRequest(version=None, running="finish")
    if _has_body(request):
        body = await read_body(request, RollBackWeightsRequest, state.settings.max_body_size)
    put = await state.versions.roll_back(body.version, body.running)
    return json_answer(_card(state, model) | {"switched": put.switched})


@router.post(
    "/init_weight_transfer_engine",
    summary="vLLM's: how weights will come",
    response_model=WeightsMessage,
    responses=ERRORS,
    openapi_extra=optional_body_of(InitTransferRequest),
)
async def init_transfer(request: Request) -> Response:
    """Weights come as files on a disk that both see; NCCL and CUDA IPC are refused."""
    state = _admin(request)
    if _has_body(request):
        body = await read_body(request, InitTransferRequest, state.settings.max_body_size)
        if body.init_info not in ({}, {"backend": "file"}):
            raise UnsupportedError(
                "Weights are taken from files only: leave init_info empty, and send "
                '{"update_info": {"weight_dir": PATH}} to /update_weights.',
                param="init_info",
            )
    return json_answer({"message": "Weight transfer initialized"})


@router.post(
    "/start_weight_update",
    summary="vLLM's: the next /update_weights are parts of one version",
    response_model=WeightsMessage,
    responses=ERRORS,
    openapi_extra=optional_body_of(StartUpdateRequest),
)
async def start_update(request: Request) -> Response:
    """Nothing changes until /finish_weight_update."""
    state = _admin(request)
    if _has_body(request):
        await read_body(request, StartUpdateRequest, state.settings.max_body_size)
    state.versions.start()
    return json_answer({"message": "Weight update started"})


@router.post(
    "/update_weights",
    summary="Weights from files, by prime-rl's and vLLM's name",
    response_model=WeightsMessage,
    responses=ERRORS,
    openapi_extra=body_of(UpdateWeightsRequest),
)
async def update_weights(request: Request) -> Response:
    """All weights at once, or after /start_weight_update a part of them."""
    state = _admin(request)
    body = await read_body(request, UpdateWeightsRequest, state.settings.max_body_size)
    path = _path_of(body)
    if state.versions.is_collecting:
        await state.versions.add_part(path)
    else:
        await state.versions.put_path(path, body.running)
    return json_answer({"message": "Weights updated"})


@router.post(
    "/finish_weight_update",
    summary="vLLM's: put the parts in",
    response_model=WeightsMessage,
    responses=ERRORS,
    openapi_extra=optional_body_of(FinishUpdateRequest),
)
async def finish_update(request: Request) -> Response:
    """All parts together are one version; what is wrong changes nothing."""
    state = _admin(request)
    body = FinishUpdateRequest(running="keep")
    if _has_body(request):
        body = await read_body(request, FinishUpdateRequest, state.settings.max_body_size)
    await state.versions.finish(body.running)
    return json_answer({"message": "Weight update finished"})


@router.get(
    "/weight_info",
    summary="vLLM's: the version of the weights",
    response_model=WeightInfo,
    responses=ERRORS,
)
async def weight_info(request: Request) -> Response:
    """0 as loaded."""
    state = _admin(request)
    return json_answer({"weight_version": str(state.versions.current.version)})


def _path_of(body: UpdateWeightsRequest) -> str:
    if body.weight_dir is not None and body.update_info is None:
        return body.weight_dir
    info = {} if body.weight_dir is not None else body.update_info or {}
    path = info.get("weight_dir")
    if not isinstance(path, str) or len(info) > 1:
        raise InvalidRequestError(
            'Weights are taken from files only: one of weight_dir and {"update_info": '
            '{"weight_dir": PATH}} is needed.',
            param="weight_dir",
        )
    return path


def _base_model(state: ServerState, model_id: str) -> str:
    """The served name; adapters have weights of their own.

    Raises:
        NotFoundError, UnsupportedError: it is no name of the model.
    """
    if model_id not in state.settings.model_names and model_id in state.adapters:
        raise UnsupportedError(
            f"{model_id[:200]!r} is an adapter: its weights are at /v1/adapters.", param="model_id"
        )
    return state.check_model(model_id)


def _card(state: ServerState, model: str) -> dict[str, Any]:
    versions = state.versions
    return {
        "object": "weights",
        "model": model,
        "version": versions.current.version,
        "versions": versions.versions,
        "digest": versions.current.digest or None,
        "bytes": versions.current.nbytes,
    }


def _is_json(request: Request, data: bytes) -> bool:
    """What the type says; curl's, which is none, leaves it to the body: a safetensors file begins
    with eight bytes of a length, of which the last four are zero."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    return kind.endswith("json") or (kind in _AS_TYPED and data[4:8] != bytes(4))


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0"


def _admin(request: Request) -> ServerState:
    state = state_of(request)
    check_admin(request, state.settings)
    state.loaded()
    return state
