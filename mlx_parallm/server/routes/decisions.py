"""POST /v1/decisions and POST /v1/systemone: typed questions, answered by probabilities."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.server.adapters import use_adapter
from mlx_parallm.server.decisions import openai_format, system_one_format
from mlx_parallm.server.decisions.decider import Decider
from mlx_parallm.server.decisions.question import as_text
from mlx_parallm.server.decisions.told import FLOAT32_NOISE, SHORT_FLOAT_NOISE
from mlx_parallm.server.flow.generation import Collected
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.input.chat_template import has_variable
from mlx_parallm.server.input.pictures.asked import listed_pictures
from mlx_parallm.server.input.prefix_namespace import prefix_namespace
from mlx_parallm.server.openapi import GENERATION_ERRORS, body_of
from mlx_parallm.server.output.responses import whole_answer
from mlx_parallm.server.schemas.decisions import (
    DecisionsRequest,
    DecisionsResponse,
    SystemOneRequest,
    SystemOneResponse,
)
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(tags=["Decisions"])


@router.post(
    "/v1/decisions",
    summary="Probabilities of the answers to typed questions",
    response_model=DecisionsResponse,
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(DecisionsRequest),
)
async def decisions(request: Request) -> Response:
    """Predicates, choices and scores about one input; each question is a row of the batch."""
    state = state_of(request)
    state.prompts()
    body = await read_body(request, DecisionsRequest, state.settings.max_body_size)
    model, adapter = await state.model_of(body.model)
    decider = _decider(request, state, body.cache_salt, {})
    pictures = listed_pictures(body.images, "images")
    await decider.ask(
        openai_format.state_of(body), openai_format.questions_of(body), pictures=pictures
    )
    use_adapter(decider.tracks, adapter)

    def answer() -> dict[str, Any]:
        answers = openai_format.answers_of(body, decider.decisions())
        return {"model": model, "answers": answers, "usage": decider.usage()}

    return await whole_answer(request, state, Collected(decider.tracks), answer)


@router.post(
    "/v1/systemone",
    summary="The same in the shape of vLLM and Ollama",
    response_model=SystemOneResponse,
    responses=GENERATION_ERRORS,
    openapi_extra=body_of(SystemOneRequest),
)
async def system_one(request: Request) -> Response:
    """Choices, yes-or-no questions and scores about one state."""
    state = state_of(request)
    state.prompts()
    body = await read_body(request, SystemOneRequest, state.settings.max_body_size)
    model, adapter = await state.model_of(body.model)
    decider = _decider(request, state, body.cache_salt, body.chat_template_kwargs, body.priority)
    questions = system_one_format.questions_of(body)
    pictures = listed_pictures(body.images, "images")
    await decider.ask(as_text(body.state), questions, body.instructions, pictures)
    use_adapter(decider.tracks, adapter)

    def answer() -> dict[str, Any]:
        found, usage = decider.decisions(), decider.usage()
        return system_one_format.response(body, model, found, usage)

    return await whole_answer(request, state, Collected(decider.tracks), answer)


def _decider(
    request: Request,
    state: ServerState,
    cache_salt: str | None,
    variables: dict[str, Any],
    priority: int = 0,
) -> Decider:
    prompts = state.prompts()
    # A reply that begins with thinking says nothing about the labels.
    can_switch = has_variable(prompts.tokenizer, "enable_thinking")
    thoughtless = {"enable_thinking": False} if can_switch else {}
    exact = state.loaded().dtype == "float32"
    return Decider(
        prompts,
        state.told_decisions,
        noise=FLOAT32_NOISE if exact else SHORT_FLOAT_NOISE,
        namespace=prefix_namespace(request, state, cache_salt),
        variables={**thoughtless, **(state.settings.chat_template_kwargs or {}), **variables},
        limit=state.capacity,
        priority=priority,
    )
