"""POST /tokenize and /detokenize."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.server.body import read_body
from mlx_parallm.server.openapi import ERRORS, body_of
from mlx_parallm.server.responses import json_answer
from mlx_parallm.server.schemas.tokens import (
    DetokenizeRequest,
    DetokenizeResponse,
    TokenizeRequest,
    TokenizeResponse,
)
from mlx_parallm.server.state import state_of

router = APIRouter(tags=["Tokens"])


@router.post(
    "/tokenize",
    summary="Token ids of a text or a conversation",
    response_model=TokenizeResponse,
    responses=ERRORS,
    openapi_extra=body_of(TokenizeRequest),
)
async def tokenize(request: Request) -> Response:
    """The ids that a prompt or the chat template of messages comes to."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, TokenizeRequest, state.settings.max_body_size)
    state.check_model(body.model)
    if body.prompt is None:
        add = bool(body.add_special_tokens)
        ids = (await prompts.conversation(body, body.tools, add)).ids
    else:
        ids = await prompts.tokenize(body.prompt, body.add_special_tokens is not False)
    answer = {"count": len(ids), "max_model_len": prompts.max_model_len, "tokens": ids}
    if body.return_token_strs:
        answer["token_strs"] = prompts.token_strings(ids)
    return json_answer(answer)


@router.post(
    "/detokenize",
    summary="The text of token ids",
    response_model=DetokenizeResponse,
    responses=ERRORS,
    openapi_extra=body_of(DetokenizeRequest),
)
async def detokenize(request: Request) -> Response:
    """The text of token ids, special tokens included."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, DetokenizeRequest, state.settings.max_body_size)
    state.check_model(body.model)
    return json_answer({"prompt": await prompts.detokenize(body.tokens)})
