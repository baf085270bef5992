"""From a generation to an HTTP answer: whole, or as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mlx_parallm.errors import ParallmError, RequestTimeoutError
from mlx_parallm.server.flow.generation import Collected, Generation, Streamed, TellsFailure
from mlx_parallm.server.handlers import (
    CLIENT_CLOSED_REQUEST,
    envelope_for,
    error_response,
)
from mlx_parallm.server.middleware import mark_client_gone
from mlx_parallm.server.output.json_text import to_json as to_json
from mlx_parallm.server.state import ServerState


@dataclass(frozen=True, slots=True)
class Framing:
    """How the JSON objects of a stream are told apart: what stands before and after each."""

    media_type: bytes
    before: bytes
    after: bytes

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Of the response."""
        return [
            (b"content-type", self.media_type),
            (b"cache-control", b"no-cache"),
            # Tells nginx not to gather events.
            (b"x-accel-buffering", b"no"),
        ]

    def framed(self, value: Any) -> bytes:
        """One object of the stream."""
        return self.before + to_json(value) + self.after


EVENTS = Framing(b"text/event-stream; charset=utf-8", b"data: ", b"\n\n")
# Anthropic's; the formats write the names of their own events.
MESSAGE_EVENTS = Framing(EVENTS.media_type, b"event: error\ndata: ", b"\n\n")
LINES = Framing(b"application/x-ndjson", b"", b"\n")

# Log-probabilities up to this many are written on the event loop: about 2 ms.
_INLINE_LOGPROBS = 512


class _ClientGoneError(ParallmError):
    """Ends a generation that nobody waits for any more; never sent."""

    status = CLIENT_CLOSED_REQUEST


def json_answer(value: Any) -> Response:
    """A 200 with JSON."""
    return Response(to_json(value), media_type="application/json")


async def whole_answer(
    request: Request,
    state: ServerState,
    generation: Collected,
    make: Callable[[], Any],
) -> Response:
    """Queue a generation, wait for its end, answer with what `make` makes of it.

    Raises:
        ParallmError: what went wrong with it.
    """
    deadline = _deadline(state, generation)
    gone = asyncio.create_task(client_gone(request.receive))
    try:
        future = state.queue.put(generation)
        await asyncio.wait((future, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        gone.cancel()
        if deadline is not None:
            deadline.cancel()
        # Also when this task is cancelled: no row may be left behind.
        state.dispatcher.cancel(generation, _ClientGoneError("The client has gone."))
    if isinstance(generation.error, _ClientGoneError):
        mark_client_gone(request.scope)
        return Response(status_code=CLIENT_CLOSED_REQUEST)
    if generation.error is not None:
        raise generation.error
    return Response(await _built(state, generation, make), media_type="application/json")


async def _built(state: ServerState, generation: Generation, make: Callable[[], Any]) -> bytes:
    """The answer's JSON; a large one is made beside the event loop, so that streams go on."""
    scored = sum(len(one.logprobs) + len(one.prompt_logprobs) for one in generation.tracks)
    if scored <= _INLINE_LOGPROBS:
        return to_json(make())
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(state.executor, lambda: to_json(make()))


def event_answer(state: ServerState, generation: Streamed, framing: Framing = EVENTS) -> Response:
    """Start a generation and answer with its events, framed as its format frames them.

    Raises:
        ParallmError: the engine did not accept it.
    """
    state.dispatcher.submit([generation])
    return EventStream(state, generation, framing)


class EventStream(Response):
    """The events of a generation, as they come.

    The status is not sent before there is something to send, so that a request that fails at
    once has the status of its failure. Later failures are an event, and the stream ends.
    """

    def __init__(self, state: ServerState, generation: Streamed, framing: Framing) -> None:
        super().__init__()
        self._framing = framing
        self._state = state
        self._generation = generation

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline = _deadline(self._state, self._generation)
        listener = asyncio.create_task(self._stop_when_gone(receive))
        try:
            await self._send_all(scope, receive, send)
        finally:
            listener.cancel()
            if deadline is not None:
                deadline.cancel()
            self._cancel()

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            while (piece := await self._generation.next_piece()) is not None:
                if not started:
                    started = True
                    headers = self._framing.headers
                    await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        except ParallmError as error:
            if isinstance(error, _ClientGoneError):
                mark_client_gone(scope)
                return
            if not started:
                await error_response(error, scope)(scope, receive, send)
                return
            event = self._failure(error, scope)
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _failure(self, error: ParallmError, scope: Scope) -> bytes:
        style = self._generation.style
        if isinstance(style, TellsFailure):
            return style.failure(error)
        return self._framing.framed(envelope_for(error, scope))

    async def _stop_when_gone(self, receive: Receive) -> None:
        await client_gone(receive)
        self._cancel()

    def _cancel(self) -> None:
        self._state.dispatcher.cancel(self._generation, _ClientGoneError("The client has gone."))


def _deadline(state: ServerState, generation: Generation) -> asyncio.TimerHandle | None:
    """End the generation when --request-timeout is over."""
    seconds = state.settings.request_timeout
    if seconds is None:
        return None
    error = RequestTimeoutError(f"The request was not finished within {seconds:g} seconds.")
    loop = asyncio.get_running_loop()
    return loop.call_later(seconds, state.dispatcher.cancel, generation, error)


async def client_gone(receive: Receive) -> None:
    """Return when the client has closed its connection. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
