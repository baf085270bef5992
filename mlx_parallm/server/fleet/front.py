"""The front: hands each request to the application of the model that it names."""

from __future__ import annotations

import re
from typing import Any

from pydantic_core import from_json
from starlette.routing import Match, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_parallm.errors import BodyTooLargeError, ParallmError
from mlx_parallm.server.fleet.fleet import Fleet
from mlx_parallm.server.handlers import error_response

# Names a model where the body cannot: for GET and DELETE.
MODEL_HEADER = b"x-model"
_OF_MODEL = re.compile(r"/v1/models/(.+)/\w+")


class Front:
    """ASGI middleware in front of the fleet's own routes.

    The model's name is read from the body's `model`, else from the path below /v1/models, else
    from the header x-model; a request without any of them is for the first model.

    Args:
        app: answers what the fleet answers itself; own: its routes.
        limit: bytes of a body; longer ones are refused.
    """

    def __init__(self, app: ASGIApp, fleet: Fleet, own: Router, limit: int) -> None:
        self._app = app
        self._fleet = fleet
        self._own = own
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._is_own(scope):
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._limit)
        try:
            slot = self._fleet.get(await _model_named(scope, body))
            async with self._fleet.using(slot) as app:
                scope["state"]["record"].on_answer = app.state.on_answer
                await app(scope, body.receive, send)
        except ParallmError as error:
            await error_response(error, scope)(scope, receive, send)

    def _is_own(self, scope: Scope) -> bool:
        return any(route.matches(scope)[0] is Match.FULL for route in self._own.routes)


async def _model_named(scope: Scope, body: _Body) -> str:
    """The name in a request; empty where there is none."""
    if scope["method"] == "POST":
        name = _field(await body.whole(), "model")
        if isinstance(name, str) and name:
            return name
    if in_path := _OF_MODEL.fullmatch(scope["path"]):
        return in_path[1]
    return model_header(scope)


def model_header(scope: Scope) -> str:
    """What x-model says, in UTF-8; empty where it is not there."""
    header = next((value for key, value in scope["headers"] if key == MODEL_HEADER), b"")
    return bytes(header).decode(errors="replace")


def _field(body: bytes, name: str) -> Any:
    """A field of a JSON object; None where there is none. The route says what is wrong with it."""
    try:
        value = from_json(body)
    except ValueError:
        return None
    return value.get(name) if isinstance(value, dict) else None


class _Body:
    """A request's body, read once and given again to who answers it."""

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self._limit = limit
        self._messages: list[Message] = []

    async def whole(self) -> bytes:
        """All of it.

        Raises:
            BodyTooLargeError: longer than the limit.
        """
        size, more = 0, True
        while more:
            message = await self._receive()
            self._messages.append(message)
            size += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
            if size > self._limit:
                raise BodyTooLargeError(f"The body is longer than {self._limit} bytes.")
        return b"".join(message.get("body", b"") for message in self._messages)

    async def receive(self) -> Message:
        """What was read, then what comes after it."""
        return self._messages.pop(0) if self._messages else await self._receive()
