"""The OpenAPI document: request bodies and errors that the framework cannot see by itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from mlx_parallm.server.examples import EXAMPLES
from mlx_parallm.server.schemas.adapters import (
    AddAdapterRequest,
    LoadLoraRequest,
    RollBackRequest,
    UnloadLoraRequest,
)
from mlx_parallm.server.schemas.chat import ChatCompletionRequest
from mlx_parallm.server.schemas.collections import AddMemoriesRequest, SearchMemoriesRequest
from mlx_parallm.server.schemas.compat.llama_cpp import (
    ApplyTemplateRequest,
    LlamaCompletionRequest,
    LlamaTokenizeRequest,
)
from mlx_parallm.server.schemas.compat.messages import CountTokensRequest, MessagesRequest
from mlx_parallm.server.schemas.compat.ollama import (
    OllamaChatRequest,
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from mlx_parallm.server.schemas.compat.openai_responses import ResponsesRequest
from mlx_parallm.server.schemas.completions import CompletionRequest
from mlx_parallm.server.schemas.configure import ConfigureRequest
from mlx_parallm.server.schemas.control import AbortRequests
from mlx_parallm.server.schemas.decisions import DecisionsRequest, SystemOneRequest
from mlx_parallm.server.schemas.errors import ErrorResponse
from mlx_parallm.server.schemas.generate import (
    EngineGenerateRequest,
    GenerateBatchRequest,
    GenerateRequest,
)
from mlx_parallm.server.schemas.pooling import (
    ClassifyRequest,
    EmbeddingRequest,
    RerankRequest,
    ScoreRequest,
)
from mlx_parallm.server.schemas.predict import PredictRequest
from mlx_parallm.server.schemas.rollouts.rollout import RolloutRequest
from mlx_parallm.server.schemas.rollouts.sglang import SglangGenerateRequest
from mlx_parallm.server.schemas.rollouts.trl import (
    SequenceLogprobsRequest,
    TrlChatRequest,
    TrlGenerateRequest,
)
from mlx_parallm.server.schemas.rollouts.vllm import TokenGenerateRequest, VllmGenerateRequest
from mlx_parallm.server.schemas.tokens import DetokenizeRequest, TokenizeRequest
from mlx_parallm.server.schemas.weights import (
    FinishUpdateRequest,
    InitTransferRequest,
    PutWeightsRequest,
    RollBackWeightsRequest,
    StartUpdateRequest,
    UpdateWeightsRequest,
)

BODIES: tuple[type[BaseModel], ...] = (
    AbortRequests,
    AddAdapterRequest,
    LoadLoraRequest,
    RollBackRequest,
    UnloadLoraRequest,
    AddMemoriesRequest,
    ApplyTemplateRequest,
    ChatCompletionRequest,
    ClassifyRequest,
    CompletionRequest,
    ConfigureRequest,
    DecisionsRequest,
    CountTokensRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    EngineGenerateRequest,
    GenerateBatchRequest,
    GenerateRequest,
    LlamaCompletionRequest,
    LlamaTokenizeRequest,
    MessagesRequest,
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaEmbeddingsRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
    PredictRequest,
    RerankRequest,
    ResponsesRequest,
    RolloutRequest,
    ScoreRequest,
    SearchMemoriesRequest,
    SequenceLogprobsRequest,
    SglangGenerateRequest,
    SystemOneRequest,
    TokenGenerateRequest,
    TrlChatRequest,
    TrlGenerateRequest,
    VllmGenerateRequest,
    TokenizeRequest,
    PutWeightsRequest,
    RollBackWeightsRequest,
    InitTransferRequest,
    StartUpdateRequest,
    UpdateWeightsRequest,
    FinishUpdateRequest,
)
_REF = "#/components/schemas/{model}"


def _errors(**descriptions: str) -> dict[int | str, dict[str, Any]]:
    return {
        int(status.removeprefix("_")): {"model": ErrorResponse, "description": description}
        for status, description in descriptions.items()
    }


ERRORS = _errors(
    _400="A value is wrong; `param` names it.",
    _401="The API key is missing or wrong.",
    _404="No such model or route.",
    _409="Memories are damaged or still being made, or the request was cancelled.",
    _413="The body is too large.",
    _500="A fault of the server.",
    _503="Loading, draining, stopped, or out of memory; see Retry-After.",
)
GENERATION_ERRORS = ERRORS | _errors(
    _408="The request took longer than the server allows.",
    _429="Too many requests wait; see Retry-After.",
)
_EVENT = {
    "type": "object",
    "description": "One event.",
    "properties": {"data": {"type": "string", "description": "A chunk as JSON, or [DONE]."}},
    "required": ["data"],
}
EVENTS: dict[str, Any] = {
    "description": "The answer; with `stream` its events, ended by `data: [DONE]`.",
    "content": {"text/event-stream": {"schema": _EVENT}},
}
JSON_LINES: dict[str, Any] = {
    "description": "The answer; a stream is one JSON object a line.",
    "content": {"application/x-ndjson": {"schema": {"type": "string"}}},
}


def with_errors(
    responses: dict[int | str, dict[str, Any]], model: type[BaseModel]
) -> dict[int | str, dict[str, Any]]:
    """The same failures, in the envelope of another API."""
    return {status: {**response, "model": model} for status, response in responses.items()}


def body_of(*models: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` for a route that reads its body with read_body(), as one of `models`."""
    refs = [{"$ref": _REF.format(model=model.__name__)} for model in models]
    schema: dict[str, Any] = refs[0] if len(refs) == 1 else {"anyOf": refs}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def form_of(model: type[BaseModel], file_field: str) -> dict[str, Any]:
    """`openapi_extra` for a route that reads a form with fields of `model` and a file."""
    schema = model.model_json_schema()
    file = {"type": "string", "format": "binary", "description": "A WAV, MP3 or FLAC file."}
    schema["properties"][file_field] = file
    schema["required"] = [*schema.get("required", ()), file_field]
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def optional_body_of(model: type[BaseModel]) -> dict[str, Any]:
    """`openapi_extra` for a route whose body may be left out."""
    extra = body_of(model)
    extra["requestBody"]["required"] = False
    return extra


def use_own_openapi(app: FastAPI, with_keys: bool) -> None:
    """Make /openapi.json complete.

    Args:
        with_keys: requests need a bearer token.
    """

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            app.openapi_schema = _document(app, with_keys)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _document(app: FastAPI, with_keys: bool) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    pairs = [(model, "validation") for model in BODIES]
    _, schemas = models_json_schema(pairs, ref_template=_REF)  # type: ignore[arg-type]
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas["$defs"])
    for name, example in EXAMPLES.items():
        components["schemas"][name]["examples"] = [example]
    if with_keys:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document
