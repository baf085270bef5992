"""POST /tokenize and /detokenize."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.engine.detokenizer import token_bytes
from mlx_parallm.server.input.body import read_body, read_json, validate
from mlx_parallm.server.input.prompts import Prompts
from mlx_parallm.server.input.request_defaults import with_defaults
from mlx_parallm.server.openapi import ERRORS, body_of
from mlx_parallm.server.output.responses import json_answer
from mlx_parallm.server.schemas.compat.llama_cpp import (
    LlamaTokenizeRequest,
    LlamaTokenizeResponse,
)
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
    response_model=TokenizeResponse | LlamaTokenizeResponse,
    responses=ERRORS,
    openapi_extra=body_of(TokenizeRequest, LlamaTokenizeRequest),
)
async def tokenize(request: Request) -> Response:
    """The ids of a prompt or of messages, vLLM's shape; with `content` llama.cpp's."""
    state = state_of(request)
    prompts = state.prompts()
    given = await read_json(request, state.settings.max_body_size)
    if isinstance(given, dict) and "content" in given:
        return await _llama_tokens(validate(LlamaTokenizeRequest, given), prompts)
    body = validate(TokenizeRequest, with_defaults(given, TokenizeRequest, state.settings))
    state.check_known(body.model)
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
    """The text of token ids, special tokens included, by vLLM's name and by llama.cpp's."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, DetokenizeRequest, state.settings.max_body_size)
    state.check_known(body.model)
    text = await prompts.detokenize(body.tokens)
    return json_answer({"prompt": text, "content": text})


async def _llama_tokens(body: LlamaTokenizeRequest, prompts: Prompts) -> Response:
    ids = await prompts.tokenize(body.content, body.add_special)
    if not body.with_pieces:
        return json_answer({"tokens": ids})
    return json_answer({"tokens": [_piece(token_id, prompts) for token_id in ids]})


def _piece(token_id: int, prompts: Prompts) -> dict[str, Any]:
    """A token with its text, or its bytes where they are a part of a character."""
    raw = bytes(token_bytes(prompts.tokenizer, token_id))
    try:
        return {"id": token_id, "piece": raw.decode()}
    except UnicodeDecodeError:
        return {"id": token_id, "piece": list(raw)}
