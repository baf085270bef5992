"""OpenAI's Responses API, answered by the same engine."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.errors import InvalidRequestError, NotFoundError, RequestCancelledError
from mlx_parallm.server.adapters import use_adapter
from mlx_parallm.server.compat.item_ids import response_of
from mlx_parallm.server.compat.responses_format import ResponsesFormat
from mlx_parallm.server.compat.responses_requests import count_input_tokens, response_tracks
from mlx_parallm.server.flow.generation import Collected, Streamed
from mlx_parallm.server.gate.undeclared import IGNORES_UNKNOWN
from mlx_parallm.server.input.body import read_body, validate
from mlx_parallm.server.input.prefix_namespace import prefix_namespace
from mlx_parallm.server.openapi import ERRORS, EVENTS, GENERATION_ERRORS, body_of
from mlx_parallm.server.output.responses import event_answer, json_answer, whole_answer
from mlx_parallm.server.response_store import Stored
from mlx_parallm.server.schemas.compat.openai_responses import (
    REFERENCE,
    DeletedResponse,
    InputItems,
    InputTokens,
    Item,
    ResponseObject,
    ResponsesRequest,
)
from mlx_parallm.server.state import state_of

router = APIRouter(prefix="/v1/responses", tags=["Responses"])


@router.post(
    "",
    summary="Answer items with items",
    response_model=ResponseObject,
    responses={200: EVENTS, **GENERATION_ERRORS},
    openapi_extra=body_of(ResponsesRequest) | IGNORES_UNKNOWN,
)
async def create_response(request: Request) -> Response:
    """Write a response, whole or as a stream of numbered events."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, ResponsesRequest, state.settings.max_body_size)
    model, adapter = await state.model_of(body.model)
    earlier = await _earlier(request, body.previous_response_id)
    body.input = await _resolved(request, body.input)
    namespace = prefix_namespace(request, state, body.cache_salt)
    tracks = await response_tracks(body, earlier, prompts, state.settings, namespace)
    use_adapter(tracks, adapter)
    owner, items = _owner(request), [*earlier, *body.input]

    def keep(response: dict[str, Any]) -> None:
        if body.store:
            state.responses().put(Stored(owner, response, items))

    style = ResponsesFormat(body, model, prompts.tokenizer, keep)
    if not body.stream:
        return await whole_answer(request, state, Collected(tracks), lambda: style.whole(tracks[0]))
    generation = Streamed(tracks, style)
    answer = event_answer(state, generation)
    state.registry.add(style.id, generation)
    return answer


@router.post(
    "/input_tokens",
    summary="How many tokens the items of a request have",
    response_model=InputTokens,
    responses=ERRORS,
    openapi_extra=body_of(ResponsesRequest) | IGNORES_UNKNOWN,
)
async def count_tokens(request: Request) -> Response:
    """Tokens of the prompt, tools and earlier items included."""
    state = state_of(request)
    prompts = state.prompts()
    body = await read_body(request, ResponsesRequest, state.settings.max_body_size)
    await state.model_of(body.model)
    earlier = await _earlier(request, body.previous_response_id)
    body.input = await _resolved(request, body.input)
    count = await count_input_tokens(body, earlier, prompts, state.settings)
    return json_answer({"object": "response.input_tokens", "input_tokens": count})


@router.get(
    "/{response_id}",
    summary="A stored response",
    response_model=ResponseObject,
    responses=ERRORS,
    openapi_extra=IGNORES_UNKNOWN,
)
async def get_response(response_id: str, request: Request) -> Response:
    """The response as it was answered."""
    if request.query_params.get("stream", "false") != "false":
        raise InvalidRequestError("Stored responses are not streamed.", param="stream")
    return json_answer((await _stored(request, response_id)).response)


@router.delete(
    "/{response_id}",
    summary="Forget a stored response",
    response_model=DeletedResponse,
    responses=ERRORS,
    openapi_extra=IGNORES_UNKNOWN,
)
async def delete_response(response_id: str, request: Request) -> Response:
    """It cannot be gone on from any more; those that did go on keep what it said."""
    await _stored(request, response_id)
    await state_of(request).responses().delete(response_id)
    return json_answer({"id": response_id, "object": "response", "deleted": True})


@router.get(
    "/{response_id}/input_items",
    summary="What a stored response was made from",
    response_model=InputItems,
    responses=ERRORS,
    openapi_extra=IGNORES_UNKNOWN,
)
async def input_items(response_id: str, request: Request) -> Response:
    """The items before it, oldest first, those of earlier responses included."""
    stored = await _stored(request, response_id)
    items = [{"id": f"item_{place}", **_as_item(item)} for place, item in enumerate(stored.items)]
    ends = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return json_answer(
        {
            "object": "list",
            "data": items,
            "first_id": ends[0],
            "last_id": ends[1],
            "has_more": False,
        }
    )


@router.post(
    "/{response_id}/cancel",
    summary="End a response that is being streamed",
    response_model=ResponseObject,
    responses=ERRORS,
    openapi_extra=IGNORES_UNKNOWN,
)
async def cancel_response(response_id: str, request: Request) -> Response:
    """Its stream ends with `response.failed`, and it is kept with the status `cancelled`."""
    state = state_of(request)
    generation = state.registry.find(response_id)
    style = generation.style if isinstance(generation, Streamed) else None
    if generation is None or generation.ended or not isinstance(style, ResponsesFormat):
        await _stored(request, response_id)
        raise InvalidRequestError("The response has ended; it cannot be cancelled.")
    state.dispatcher.cancel(generation, RequestCancelledError("The response was cancelled."))
    return json_answer(style.unfinished("cancelled"))


async def _earlier(request: Request, previous: str | None) -> list[Item]:
    """The items of the conversation up to and with the previous response's."""
    if previous is None:
        return []
    stored = await _stored(request, previous, "previous_response_id")
    said = stored.response["output"]
    if not said:
        return stored.items
    return [*stored.items, *validate(ResponsesRequest, {"input": said}).input]


async def _resolved(request: Request, items: list[Item]) -> list[Item]:
    """The items with stored ones in the place of references to them."""
    return [
        await _referenced(request, item["id"], f"input.{place}.id")
        if item["type"] == REFERENCE
        else item
        for place, item in enumerate(items)
    ]


async def _referenced(request: Request, id_: str, param: str) -> Item:
    response = response_of(id_)
    stored = None
    if response is not None:
        stored = await state_of(request).responses().get(response, _owner(request))
    said = [] if stored is None else stored.response["output"]
    found = [item for item in said if item["id"] == id_]
    if not found:
        raise NotFoundError(f"There is no item {id_[:200]!r}.", param=param, code="item_not_found")
    return validate(ResponsesRequest, {"input": found}).input[0]


async def _stored(request: Request, response_id: str, param: str | None = None) -> Stored:
    stored = await state_of(request).responses().get(response_id, _owner(request))
    if stored is None:
        raise NotFoundError(
            f"There is no response {response_id[:200]!r}.", param=param, code="response_not_found"
        )
    return stored


def _owner(request: Request) -> str:
    """Who may see a response: everybody, or where API keys are kept apart, those with the key."""
    return repr(prefix_namespace(request, state_of(request), None))


def _as_item(item: Item) -> Item:
    """An item as clients know it: texts are parts again."""
    if item["type"] != "message":
        return item
    if not isinstance(item["content"], str):
        return item
    kind = "output_text" if item["role"] == "assistant" else "input_text"
    return {**item, "content": [{"type": kind, "text": item["content"]}]}
