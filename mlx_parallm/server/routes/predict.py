"""POST /v1/predict: plain networks."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.errors import InvalidRequestError, NotFoundError
from mlx_parallm.models.predictor import Predictor, Signature
from mlx_parallm.server.flow.generation import Collected
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.openapi import GENERATION_ERRORS, body_of
from mlx_parallm.server.output.responses import whole_answer
from mlx_parallm.server.predictions import outputs_of, prediction_tracks, receipt_of
from mlx_parallm.server.schemas.predict import PredictRequest
from mlx_parallm.server.state import state_of

router = APIRouter(tags=["Plain networks"])


@router.post(
    "/v1/predict",
    summary="What a plain network says",
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(PredictRequest),
)
async def predict(request: Request) -> Response:
    """The outputs of an MLP or LSTM that was given with --predictor, for each row.

    Rows of all requests that wait for the same network are computed in one forward, in the
    steps of the engine.
    """
    state = state_of(request)
    predictors = state.loaded().predictors
    body = await read_body(request, PredictRequest, state.settings.max_body_size)
    network = _chosen(predictors, body.model)
    rows = [_row(row, place, network.signature) for place, row in enumerate(body.inputs)]
    tracks = prediction_tracks(network, rows, body.priority, state)
    generation = Collected(tracks, at_once=True)
    return await whole_answer(
        request, state, generation, lambda: _answer(generation, network.signature, body)
    )


def _answer(generation: Collected, signature: Signature, body: PredictRequest) -> dict[str, Any]:
    outputs = outputs_of(generation.tracks)
    if not np.isfinite(outputs).all():
        raise InvalidRequestError("The network's output is not finite.", param="inputs")
    data = [_shown(output, place, signature) for place, output in enumerate(outputs)]
    answer = {"object": "list", "model": signature.name, "data": data}
    return answer | {"receipt": receipt_of(generation.tracks)} if body.receipt else answer


def _chosen(predictors: dict[str, Predictor], name: str) -> Predictor:
    if not name and len(predictors) == 1:
        return next(iter(predictors.values()))
    if name not in predictors:
        known = ", ".join(map(repr, predictors)) or "none; see --predictor"
        raise NotFoundError(
            f"There is no network {name[:200]!r}; this server has {known}.",
            param="model",
            code="model_not_found",
        )
    return predictors[name]


def _row(row: Any, place: int, signature: Signature) -> np.ndarray:
    """(T, input_size); an MLP's row is one step."""
    is_mlp = signature.kind == "mlp"
    steps = [row] if is_mlp else row
    fits = all(isinstance(step, list) and len(step) == signature.input_size for step in steps)
    if not fits or (is_mlp and isinstance(row[0], list)):
        shape = f"{signature.input_size} numbers"
        wanted = shape if is_mlp else f"steps of {shape} each"
        raise InvalidRequestError(f"{signature.name!r} takes {wanted}.", param=f"inputs[{place}]")
    return np.array(steps, dtype=np.float32)


def _shown(output: np.ndarray, place: int, signature: Signature) -> dict[str, Any]:
    entry = {"object": "prediction", "index": place, "outputs": [float(v) for v in output]}
    if signature.labels:
        entry["label"] = signature.labels[int(output.argmax())]
    return entry
