"""POST /invocations: SageMaker's one door. What a body holds says what it asks for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.server.input.body import parse_json, read_bytes, with_body
from mlx_parallm.server.openapi import EVENTS, GENERATION_ERRORS, body_of
from mlx_parallm.server.routes.chat import create_chat_completion
from mlx_parallm.server.routes.completions import create_completion
from mlx_parallm.server.routes.decisions import decisions, system_one
from mlx_parallm.server.routes.pooling import embeddings, rerank, score
from mlx_parallm.server.schemas.chat import ChatCompletionRequest
from mlx_parallm.server.schemas.completions import CompletionRequest
from mlx_parallm.server.schemas.decisions import DecisionsRequest, SystemOneRequest
from mlx_parallm.server.schemas.pooling import EmbeddingRequest, RerankRequest, ScoreRequest
from mlx_parallm.server.state import state_of

router = APIRouter(tags=["Generation"])

_Handler = Callable[[Request], Awaitable[Response]]
# The first one whose fields are all in the body answers it.
_HANDLERS: tuple[tuple[frozenset[str], _Handler], ...] = (
    (frozenset({"messages"}), create_chat_completion),
    (frozenset({"prompt", "continuations"}), score),
    (frozenset({"prompt"}), create_completion),
    (frozenset({"query", "documents"}), rerank),
    (frozenset({"input", "questions"}), decisions),
    (frozenset({"state", "questions"}), system_one),
    (frozenset({"input"}), embeddings),
)


@router.post(
    "/invocations",
    summary="Any request, told by its fields",
    responses={200: EVENTS, **GENERATION_ERRORS},
    openapi_extra=body_of(
        ChatCompletionRequest,
        CompletionRequest,
        ScoreRequest,
        RerankRequest,
        DecisionsRequest,
        SystemOneRequest,
        EmbeddingRequest,
    ),
)
async def invocations(request: Request) -> Response:
    """Hand a body to the route that it is for: chat, completions, scores, ranks, embeddings."""
    body = await read_bytes(request, state_of(request).settings.max_body_size)
    handler = _handler_of(parse_json(body))
    return await handler(with_body(request, bytes(body)))


def _handler_of(value: Any) -> _Handler:
    fields = set(value) if isinstance(value, Mapping) else set()
    for needed, handler in _HANDLERS:
        if needed <= fields:
            return handler
    shapes = "; ".join(" and ".join(sorted(needed)) for needed, _ in _HANDLERS)
    raise InvalidRequestError(f"The body is none of the known shapes, which have: {shapes}.")
