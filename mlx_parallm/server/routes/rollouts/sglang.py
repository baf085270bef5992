"""/generate in SGLang's form."""

from __future__ import annotations

from fastapi import Request
from starlette.responses import Response

from mlx_parallm.server.flow.generation import Collected
from mlx_parallm.server.handlers import request_id_of
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.output.responses import whole_answer
from mlx_parallm.server.rollouts.sampling import completion_of, sampled_tracks
from mlx_parallm.server.rollouts.sglang import SglangFormat, completion_fields, names_of
from mlx_parallm.server.schemas.rollouts.sglang import SglangGenerateRequest
from mlx_parallm.server.state import state_of


async def generate_as_sglang(request: Request) -> Response:
    """n samples of each prompt."""
    state = state_of(request)
    state.loaded()
    body = await read_body(request, SglangGenerateRequest, state.settings.max_body_size)
    names = names_of(body)
    asked = completion_of(state, completion_fields(body), names)
    _, tracks = await sampled_tracks(request, state, asked, names)
    request_id = request_id_of(request.scope)
    style = SglangFormat(body, request_id, state.loaded().tokenizer)
    generation = Collected(tracks)
    state.registry.add(body.rid or request_id, generation)
    return await whole_answer(request, state, generation, lambda: style.whole(generation))
