"""GET /v1/models and /v1/models/{id}."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.options.values import name_and_path
from mlx_parallm.server.adapters import Entry
from mlx_parallm.server.admin import shown_card
from mlx_parallm.server.openapi import ERRORS
from mlx_parallm.server.output.responses import json_answer
from mlx_parallm.server.schemas.models import ModelCard, ModelList
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(tags=["Models"])


@router.get("/v1/models", summary="What is served", response_model=ModelList, responses=ERRORS)
async def list_models(request: Request) -> Response:
    """Every model that a request can name; also while it loads."""
    state = state_of(request)
    cards = [_card(state, name) for name in state.settings.model_names]
    cards += [_adapter_card(state, entry) for entry in state.adapters.entries]
    cards += _sound_cards(state)
    shown = [shown_card(card, request, state.settings) for card in cards]
    return json_answer({"object": "list", "data": shown})


@router.get(
    "/v1/models/{model_id:path}",
    summary="One model",
    response_model=ModelCard,
    responses=ERRORS,
)
async def get_model(request: Request, model_id: str) -> Response:
    """One model by its name, which may contain slashes."""
    state = state_of(request)
    if model_id not in state.settings.model_names and model_id in state.adapters:
        card = _adapter_card(state, state.adapters.entry(model_id))
    elif sounds := [card for card in _sound_cards(state) if card["id"] == model_id]:
        card = sounds[0]
    else:
        card = _card(state, state.check_model(model_id))
    return json_answer(shown_card(card, request, state.settings))


def _sound_cards(state: ServerState) -> list[dict[str, Any]]:
    """Of the model that turns sounds into text, if there is one."""
    given = state.settings.transcription_model
    if given is None:
        return []
    whisper = None if state.engine.loaded is None else state.engine.loaded.whisper
    name, path = name_and_path(given)
    own = {
        "type": "transcription",
        "path_or_hf_id": path,
        "root": path,
        "max_model_len": None if whisper is None else whisper.context,
        "bytes": None if whisper is None else whisper.nbytes,
        "capabilities": None
        if whisper is None
        else {"vision": False, "video": False, "transcription": True},
    }
    return [_card(state, name) | own]


def _adapter_card(state: ServerState, entry: Entry) -> dict[str, Any]:
    base = _card(state, entry.name)
    path = entry.path or entry.name
    return base | {
        "created": entry.created,
        "path_or_hf_id": path,
        "root": path,
        "parent": state.settings.model_names[0],
    }


def _card(state: ServerState, name: str) -> dict[str, Any]:
    loaded = state.engine.loaded
    path = state.settings.model_path
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "mlx_parallm",
        "status": state.engine.state,
        "type": "causal_lm",
        "path_or_hf_id": path,
        "root": path,
        "parent": None,
        "max_model_len": loaded.max_model_len if loaded else None,
        "bytes": loaded.nbytes if loaded else None,
        "capabilities": loaded.capabilities if loaded else None,
    }
