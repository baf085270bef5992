"""Ollama's API below /api, answered by the same engine."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm import __version__
from mlx_parallm.engine.adapters.adapter import Adapter
from mlx_parallm.errors import InvalidRequestError, NotFoundError, UnsupportedError
from mlx_parallm.server.adapters import use_adapter
from mlx_parallm.server.compat import ollama_models, ollama_requests
from mlx_parallm.server.compat.ollama_format import ChatLines, GenerateLines, OllamaFormat
from mlx_parallm.server.flow.generation import Collected, Streamed, Track
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.input.prefix_namespace import prefix_namespace
from mlx_parallm.server.input.prompts import Prompt, Prompts
from mlx_parallm.server.memory_meter import device_name
from mlx_parallm.server.openapi import GENERATION_ERRORS, JSON_LINES, body_of, with_errors
from mlx_parallm.server.output.responses import LINES, event_answer, json_answer, whole_answer
from mlx_parallm.server.pooling import normalized, pooled_tracks, vectors
from mlx_parallm.server.schemas.compat.ollama import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaError,
    OllamaFields,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from mlx_parallm.server.state import ServerState, state_of

router = APIRouter(prefix="/api", tags=["Ollama"])

# The release of Ollama whose API this is: clients ask for a least version, not for a name.
OLLAMA_VERSION = "0.12.11"

_ERRORS = with_errors(GENERATION_ERRORS, OllamaError)


@router.post(
    "/chat",
    summary="Answer a conversation",
    responses={200: JSON_LINES, **_ERRORS},
    openapi_extra=body_of(OllamaChatRequest),
)
async def chat(request: Request) -> Response:
    """Write the next message; a stream of lines unless `stream` is false."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, OllamaChatRequest, state.settings.max_body_size)
    model, adapter = await _named(state, body.model)
    style = ChatLines(model, prompts.tokenizer, _top(body))
    if not body.messages:
        return _loaded(body, style)
    namespace = prefix_namespace(request, state, None)
    tracks = await ollama_requests.chat(body, prompts, namespace)
    use_adapter(tracks, adapter)
    return await _answered(request, body, tracks, style)


@router.post(
    "/generate",
    summary="Answer a prompt",
    responses={200: JSON_LINES, **_ERRORS},
    openapi_extra=body_of(OllamaGenerateRequest),
)
async def generate(request: Request) -> Response:
    """Answer a user's turn, or continue a text (`raw`)."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, OllamaGenerateRequest, state.settings.max_body_size)
    model, adapter = await _named(state, body.model)
    style = GenerateLines(model, prompts.tokenizer, _top(body), not body.raw)
    if not body.prompt:
        return _loaded(body, style)
    namespace = prefix_namespace(request, state, None)
    tracks = await ollama_requests.generate(body, prompts, namespace)
    use_adapter(tracks, adapter)
    return await _answered(request, body, tracks, style)


@router.get("/tags", summary="Models that can be asked", responses=_ERRORS)
async def tags(request: Request) -> Response:
    """Every served name, adapters too; those without a tag with `:latest`."""
    state = state_of(request)
    names = [*state.settings.model_names, *(entry.name for entry in state.adapters.entries)]
    return json_answer({"models": [ollama_models.tag(state, name) for name in names]})


@router.get("/ps", summary="Models in memory", responses=_ERRORS)
async def ps(request: Request) -> Response:
    """The served model, which stays as long as the server runs."""
    state = state_of(request)
    on_cpu = device_name() == "CPU"
    name = state.settings.model_names[0]
    return json_answer({"models": [ollama_models.running(state, name, on_cpu)]})


@router.post(
    "/show",
    summary="One model",
    responses=_ERRORS,
    openapi_extra=body_of(OllamaShowRequest),
)
async def show(request: Request) -> Response:
    """Its family, size, context, chat template and what it can do."""
    state = state_of(request)
    body = await read_body(request, OllamaShowRequest, state.settings.max_body_size)
    name, _ = await _named(state, body.model or body.name)
    return json_answer(ollama_models.shown(state, name))


@router.get("/version", summary="The version of Ollama's API", responses=_ERRORS)
async def version(request: Request) -> Response:
    """Ollama's release whose API this is, and this server's own."""
    return json_answer({"version": OLLAMA_VERSION, "server": f"mlx_parallm {__version__}"})


@router.post(
    "/embed",
    summary="A vector for each text",
    responses=_ERRORS,
    openapi_extra=body_of(OllamaEmbedRequest),
)
async def embed(request: Request) -> Response:
    """Vectors of length 1."""
    state = state_of(request)
    prompts, begun_at = state.prompts(), time.perf_counter()
    body = await read_body(request, OllamaEmbedRequest, state.settings.max_body_size)
    model, adapter = await _named(state, body.model)
    ollama_requests.check_context(body.options, prompts)
    if not body.input:
        return json_answer({"model": model, "embeddings": []})
    made = await _texts(body.input, body.truncate, body.options.num_ctx, prompts)
    namespace = prefix_namespace(request, state, None)
    generation = Collected(pooled_tracks(made, prompts, state.loaded().pooling, 0, namespace))
    use_adapter(generation.tracks, adapter)

    def answer() -> dict[str, Any]:
        found = [vector[: body.dimensions] for vector in vectors(generation)]
        if body.dimensions is not None and len(found[0]) < body.dimensions:
            raise InvalidRequestError(
                f"The model's embeddings have {len(found[0])} dimensions.", param="dimensions"
            )
        return {
            "model": model,
            "embeddings": [normalized(vector).tolist() for vector in found],
            "total_duration": int(1e9 * (time.perf_counter() - begun_at)),
            "load_duration": 0,
            "prompt_eval_count": sum(len(prompt.ids) for prompt in made),
        }

    return await whole_answer(request, state, generation, answer)


@router.post(
    "/embeddings",
    summary="A vector for one text",
    responses=_ERRORS,
    openapi_extra=body_of(OllamaEmbeddingsRequest),
)
async def embeddings(request: Request) -> Response:
    """The older form; the vector is not scaled."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, OllamaEmbeddingsRequest, state.settings.max_body_size)
    _, adapter = await _named(state, body.model)
    ollama_requests.check_context(body.options, prompts)
    if not body.prompt:
        return json_answer({"embedding": []})
    made = await _texts([body.prompt], True, body.options.num_ctx, prompts)
    namespace = prefix_namespace(request, state, None)
    generation = Collected(pooled_tracks(made, prompts, state.loaded().pooling, 0, namespace))
    use_adapter(generation.tracks, adapter)
    return await whole_answer(
        request, state, generation, lambda: {"embedding": vectors(generation)[0].tolist()}
    )


async def _answered(
    request: Request, body: OllamaFields, tracks: list[Track], style: OllamaFormat
) -> Response:
    state = state_of(request)
    if body.stream:
        return event_answer(state, Streamed(tracks, style), LINES)
    return await whole_answer(request, state, Collected(tracks), lambda: style.whole(tracks[0]))


def _loaded(body: OllamaFields, style: OllamaFormat) -> Response:
    """Answer a request without content: it asks for the model to be loaded or unloaded."""
    if body.keep_alive in (0, "0", "0s"):
        raise UnsupportedError(
            "This server keeps its model as long as it runs; it cannot be unloaded.",
            param="keep_alive",
        )
    return json_answer(style.loaded())


async def _named(state: ServerState, name: str) -> tuple[str, Adapter | None]:
    """The model as the client wrote it, and its adapter; NotFoundError in Ollama's words."""
    try:
        model, adapter = await state.model_of(name)
        return name or model, adapter
    except NotFoundError as error:
        raise NotFoundError(
            f"model {name[:200]!r} not found", param="model", code=error.code
        ) from None


def _top(body: OllamaFields) -> int | None:
    return (body.top_logprobs or 0) if body.logprobs else None


async def _texts(
    texts: list[str], truncate: bool, context: int | None, prompts: Prompts
) -> list[Prompt]:
    """Prompts of texts; with `truncate` the first tokens of those that are too long."""
    if not truncate:
        return await prompts.inputs(texts)
    limit = context or prompts.max_model_len
    ids = [(await prompts.tokenize(text, True))[:limit] for text in texts]
    return await prompts.inputs(ids)
