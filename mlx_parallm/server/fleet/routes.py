"""What a fleet answers itself: which models there are, loading, unloading, pulling, metrics."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.responses import Response

from mlx_parallm.errors import UnavailableError
from mlx_parallm.options.values import name_and_path
from mlx_parallm.server.admin import check_admin, shown_card
from mlx_parallm.server.fleet.catalog import Entry
from mlx_parallm.server.fleet.fleet import Fleet
from mlx_parallm.server.fleet.front import model_header
from mlx_parallm.server.fleet.slot import Slot
from mlx_parallm.server.input.body import parse_json, read_raw, validate
from mlx_parallm.server.observing.fleet_metrics import fleet_metrics
from mlx_parallm.server.openapi import ERRORS, body_of
from mlx_parallm.server.output.json_text import FiniteJSONResponse
from mlx_parallm.server.output.responses import json_answer
from mlx_parallm.server.routes.health import figures
from mlx_parallm.server.schemas.models import PullRequest
from mlx_parallm.settings import Settings

router = APIRouter(tags=["Models"])
_MAX_BODY = 64 * 1024


def fleet_of(request: Request) -> Fleet:
    """The fleet of the server that got this request."""
    return request.app.state.server  # type: ignore[no-any-return]


def _settings(request: Request) -> Settings:
    return request.app.state.settings  # type: ignore[no-any-return]


@router.get("/v1/models", summary="All models", responses=ERRORS)
async def list_models(request: Request) -> Response:
    """Every model that a request can name, loaded or not, and the adapters of loaded ones.

    memory: bytes that the weights of loaded models take, and may take.
    """
    fleet = fleet_of(request)
    cards = [card for slot in fleet.slots for card in _cards(slot)]
    cards += _sound_cards(fleet, _settings(request))
    cards = [shown_card(card, request, _settings(request)) for card in cards]
    memory = {"used": fleet.memory_used, "limit": fleet.memory}
    return json_answer({"object": "list", "memory": memory, "data": cards})


@router.post(
    "/v1/models/pull",
    summary="Bring a model onto this machine",
    responses=ERRORS,
    openapi_extra=body_of(PullRequest),
)
async def pull_model(request: Request) -> Response:
    """Download a model and list it; server-sent events tell how far it is.

    A second request for the same model looks on. Who goes away does not end it; DELETE does.
    """
    check_admin(request, _settings(request))
    body = validate(PullRequest, parse_json(await read_raw(request, _MAX_BODY)))
    fleet = fleet_of(request)

    def done() -> None:
        fleet.add(Entry(body.model, body.model))

    pull = fleet.pulls.start(body.model, body.revision, done)
    return StreamingResponse(pull.events(), media_type="text/event-stream")


@router.get("/v1/models/pull", summary="Downloads on their way", responses=ERRORS)
async def list_pulls(request: Request) -> Response:
    """How far each of them is, in bytes."""
    cards = [pull.card for pull in fleet_of(request).pulls.running]
    return json_answer({"object": "list", "data": cards})


@router.delete("/v1/models/pull", summary="End a download", responses=ERRORS)
async def cancel_pull(request: Request, model: str) -> Response:
    """What came so far is kept: the next pull of the same model goes on from there."""
    check_admin(request, _settings(request))
    return json_answer(fleet_of(request).pulls.cancel(model).card | {"status": "cancelled"})


@router.post("/v1/models/{name:path}/load", summary="Load a model", responses=ERRORS)
async def load_model(request: Request, name: str) -> Response:
    """Answers once it is loaded; models that nobody uses go where memory is short."""
    check_admin(request, _settings(request))
    fleet = fleet_of(request)
    slot = fleet.get(name)
    await fleet.load(slot)
    return json_answer(_card(slot))


@router.post("/v1/models/{name:path}/unload", summary="Free a model's memory", responses=ERRORS)
async def unload_model(request: Request, name: str) -> Response:
    """A request that names it loads it again; a 409 while it answers requests."""
    check_admin(request, _settings(request))
    slot = fleet_of(request).get(name)
    await slot.unload()
    return json_answer(_card(slot))


@router.get("/v1/models/{name:path}", summary="One model", responses=ERRORS)
async def get_model(request: Request, name: str) -> Response:
    """One model by its name, which may contain slashes."""
    fleet, settings = fleet_of(request), _settings(request)
    sounds = [card for card in _sound_cards(fleet, settings) if card["id"] == name]
    cards = sounds or _cards(fleet.get(name))
    card = next(card for card in cards if card["id"] == name)
    return json_answer(shown_card(card, request, settings))


@router.get("/ping", include_in_schema=False)
@router.get("/health", summary="Whether requests are answered now", responses=ERRORS)
async def health(request: Request) -> Response:
    """200 when requests are answered; 503 while draining, and until the first model is there."""
    fleet = fleet_of(request)
    ready = any(slot.status == "ready" for slot in fleet.slots) or fleet.started
    status = "draining" if fleet.draining else "healthy" if ready else "loading"
    models = {slot.entry.name: slot.status for slot in fleet.slots}
    answer = {"status": status, "models": models}
    if status == "healthy":
        return json_answer(answer)
    headers = {"retry-after": str(UnavailableError.retry_after_s)}
    return FiniteJSONResponse(answer, status_code=503, headers=headers)


@router.get("/metrics", summary="For Prometheus", response_class=Response, responses=ERRORS)
async def metrics(request: Request) -> Response:
    """Counters and histograms of all loaded models; `model_name` tells them apart."""
    states = [slot.state for slot in fleet_of(request).slots]
    body = fleet_metrics([state.metrics for state in states if state is not None])
    return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/debug/metrics", summary="A model's figures as JSON", responses=ERRORS)
async def debug_metrics(request: Request) -> Response:
    """Of the model in x-model, or the first one; it is not loaded for that: 503 where it is not."""
    slot = fleet_of(request).get(model_header(request.scope))
    return json_answer(figures(slot.loaded_state))


def _cards(slot: Slot) -> Iterator[dict[str, Any]]:
    yield _card(slot)
    if slot.state is None:
        return
    for name in slot.state.settings.model_names[1:]:
        yield _card(slot) | {"id": name}
    for entry in slot.state.adapters.entries:
        yield _card(slot) | {
            "id": entry.name,
            "created": entry.created,
            "root": entry.path or entry.name,
            "parent": slot.entry.name,
        }


def _sound_cards(fleet: Fleet, settings: Settings) -> list[dict[str, Any]]:
    """Of the model that turns sounds into text, if there is one: it is beside the first model."""
    if settings.transcription_model is None:
        return []
    name, path = name_and_path(settings.transcription_model)
    capabilities = {"vision": False, "video": False, "transcription": True}
    own = {"id": name, "root": path, "path_or_hf_id": path, "capabilities": capabilities}
    return [_card(fleet.slots[0]) | own]


def _card(slot: Slot) -> dict[str, Any]:
    loaded = None if slot.state is None else slot.state.engine.loaded
    return {
        "id": slot.entry.name,
        "object": "model",
        "created": slot.created,
        "owned_by": "mlx_parallm",
        "status": slot.status,
        "progress": slot.progress,
        "error": slot.error,
        "pinned": slot.entry.pinned,
        "bytes": slot.nbytes,
        "requests": slot.users,
        "root": slot.entry.path,
        "path_or_hf_id": slot.entry.path,
        "parent": None,
        "max_model_len": loaded.max_model_len if loaded else None,
        "capabilities": loaded.capabilities if loaded else None,
    }
