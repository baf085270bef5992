"""GET /health, /ping, /metrics and /debug/metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.errors import UnavailableError
from mlx_parallm.server.admin import without_folders
from mlx_parallm.server.openapi import ERRORS
from mlx_parallm.server.output.json_text import FiniteJSONResponse
from mlx_parallm.server.output.responses import json_answer
from mlx_parallm.server.schemas.models import Health
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(tags=["Operation"])


@router.head("/health", include_in_schema=False)
@router.head("/ping", include_in_schema=False)
@router.get("/ping", include_in_schema=False)
@router.get(
    "/health",
    summary="Whether requests are answered now",
    response_model=Health,
    responses={503: {"model": Health, "description": "Loading, draining, stalled or stopped."}},
)
async def health(request: Request) -> Response:
    """200 when requests are answered; 503 with the reason while it loads, drains, is stalled
    (see --step-timeout) or has stopped."""
    state = state_of(request)
    engine, waits, stalled = state.engine, state.waits_for_adapter, state.engine.stalled
    ready = engine.state == "ready" and not (waits or stalled)
    status = "loading" if engine.state == "ready" else engine.state
    if stalled is not None and status != "stopped":
        status = "stalled"
    answer = {
        "status": "healthy" if ready else status,
        "model_loaded": engine.loaded is not None,
        "tokenizer_loaded": engine.loaded is not None,
        "scheduler_ready": ready,
    }
    if ready:
        return json_answer(answer)
    headers = {"retry-after": str(UnavailableError.retry_after_s)}
    answer["reason"] = without_folders(stalled or engine.reason or "the adapter is loading")
    return FiniteJSONResponse(answer, status_code=503, headers=headers)


@router.get(
    "/metrics",
    summary="For Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **ERRORS},
)
async def metrics(request: Request) -> Response:
    """Counters and histograms in Prometheus' text format."""
    body = state_of(request).metrics.prometheus()
    return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/debug/metrics", summary="The same as JSON", responses=ERRORS)
async def debug_metrics(request: Request) -> Response:
    """The engine's counters and the server's, as JSON."""
    return json_answer(figures(state_of(request)))


def figures(state: ServerState) -> dict[str, Any]:
    """The counters of one model's engine and server, and how many rows a step can have."""
    most = state.engine.config.max_batch_size
    return {**state.metrics.as_json(), "max_batch_size": most}
