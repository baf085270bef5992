"""llama.cpp's own routes, answered by the same engine. /tokenize is in tokens.py."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm import __version__
from mlx_parallm.errors import UnsupportedError
from mlx_parallm.server.adapters import use_adapter
from mlx_parallm.server.admin import without_folders
from mlx_parallm.server.compat import llama_cpp_requests
from mlx_parallm.server.compat.llama_cpp_format import LlamaFormat
from mlx_parallm.server.flow.generation import Collected, Streamed
from mlx_parallm.server.input.body import read_body
from mlx_parallm.server.input.prefix_namespace import prefix_namespace
from mlx_parallm.server.openapi import EVENTS, GENERATION_ERRORS, body_of, with_errors
from mlx_parallm.server.output.responses import event_answer, json_answer, whole_answer
from mlx_parallm.server.schemas.compat.llama_cpp import (
    ApplyTemplateRequest,
    LlamaCompletionRequest,
    LlamaError,
)
from mlx_parallm.server.state import state_of

router = APIRouter(tags=["llama.cpp"])

_ERRORS = with_errors(GENERATION_ERRORS, LlamaError)


@router.post(
    "/completion",
    summary="Continue a text",
    responses={200: EVENTS, **_ERRORS},
    openapi_extra=body_of(LlamaCompletionRequest),
)
@router.post(
    "/completions",
    summary="The same as /completion",
    responses={200: EVENTS, **_ERRORS},
    openapi_extra=body_of(LlamaCompletionRequest),
)
async def completion(request: Request) -> Response:
    """One object, a list of them for several prompts, or events."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, LlamaCompletionRequest, state.settings.max_body_size)
    model, adapter = await state.model_of(body.model)
    style = LlamaFormat(body, model, prompts)
    namespace = prefix_namespace(request, state, None)
    tracks = await llama_cpp_requests.completion(body, prompts, namespace)
    use_adapter(tracks, adapter)
    if body.stream:
        return event_answer(state, Streamed(tracks, style))
    return await whole_answer(request, state, Collected(tracks), lambda: style.whole(tracks))


@router.get("/props", summary="The model and its settings", responses=_ERRORS)
async def props(request: Request) -> Response:
    """Context, slots, chat template and the defaults of /completion."""
    state = state_of(request)
    loaded = state.loaded()
    defaults = LlamaCompletionRequest.model_validate({"prompt": ""})
    template = loaded.tokenizer.chat_template if loaded.tokenizer.has_chat_template else ""
    return json_answer(
        {
            "default_generation_settings": {
                "n_ctx": loaded.max_model_len,
                "params": defaults.model_dump(exclude={"prompt", "model"}),
            },
            "total_slots": state.settings.max_batch_size,
            "model_alias": state.settings.model_names[0],
            "model_path": without_folders(loaded.path),
            "chat_template": template if isinstance(template, str) else json.dumps(template),
            "bos_token": loaded.tokenizer.bos_token or "",
            "eos_token": loaded.tokenizer.eos_token or "",
            "modalities": {"vision": False, "audio": False},
            "build_info": f"mlx_parallm {__version__}",
            "is_sleeping": False,
        }
    )


@router.get("/slots", summary="Rows of the batch", responses=_ERRORS)
async def slots(request: Request) -> Response:
    """One object a row that can run at once, those that are busy first."""
    state = state_of(request)
    context, busy = state.loaded().max_model_len, state.engine.stats().running
    count = max(state.settings.max_batch_size, busy)
    return json_answer(
        [{"id": i, "n_ctx": context, "is_processing": i < busy} for i in range(count)]
    )


@router.post(
    "/apply-template",
    summary="The text that the chat template makes",
    responses=_ERRORS,
    openapi_extra=body_of(ApplyTemplateRequest),
)
async def apply_template(request: Request) -> Response:
    """Messages as the prompt that /completion takes."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, ApplyTemplateRequest, state.settings.max_body_size)
    state.check_known(body.model)
    return json_answer({"prompt": (await prompts.conversation(body, body.tools, False)).text})


@router.post(
    "/infill",
    summary="Not supported",
    responses=_ERRORS,
    openapi_extra={
        "requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}
    },
)
async def infill(request: Request) -> Response:
    """Refused: text between a prefix and a suffix needs a model that is trained for it."""
    raise UnsupportedError(
        "Infilling is not supported: write the model's own fill-in-the-middle tokens into the "
        "prompt of /completion."
    )
