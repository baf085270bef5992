"""The gate every request passes: an id, the key, one log line, and no exception gets out."""

from __future__ import annotations

import hmac
import logging
import re
import time
import uuid
from collections.abc import Callable, Sequence

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_parallm.errors import AuthenticationError
from mlx_parallm.server.handlers import CLIENT_CLOSED_REQUEST, error_response, internal_error

logger = logging.getLogger("mlx_parallm.access")

_SANE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_OPEN_PATHS = frozenset({"/health", "/docs", "/redoc", "/openapi.json"})


def mark_client_gone(scope: Scope) -> None:
    """Remember that nobody reads this answer any more; the log line will say 499."""
    scope["state"]["client_gone"] = True


class Gate:
    """ASGI middleware around all routes.

    Args:
        api_keys: accepted bearer tokens; empty lets everybody in.
        on_answer: called once a request with (method, route, status, seconds).
    """

    def __init__(
        self,
        app: ASGIApp,
        api_keys: Sequence[str] = (),
        on_answer: Callable[[str, str, int, float], None] | None = None,
    ) -> None:
        self._app = app
        self._keys = [key.encode() for key in api_keys]
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()
        status = 0
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._answer(scope, receive, send_with_id)
        except ClientDisconnect:
            mark_client_gone(scope)
        except Exception as error:
            known = internal_error(error, scope)
            # Once the answer has begun the status cannot change; uvicorn closes the connection.
            if status:
                raise
            await error_response(known, scope)(scope, receive, send_with_id)
        finally:
            self._note(scope, status, time.perf_counter() - started_at)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._is_refused(scope):
            error = AuthenticationError("Incorrect or missing API key: send a bearer token.")
            await error_response(error, scope)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_refused(self, scope: Scope) -> bool:
        if not self._keys or scope["path"] in _OPEN_PATHS:
            return False
        scheme, _, token = _header(scope, b"authorization").partition(b" ")
        token = token.strip()
        # All keys are compared, each in constant time, so that timing tells nothing.
        matches = [hmac.compare_digest(token, key) for key in self._keys]
        return scheme.lower() != b"bearer" or not any(matches)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        if state.get("client_gone"):
            status = CLIENT_CLOSED_REQUEST
        route = getattr(scope.get("route"), "path", "other")
        if self._on_answer is not None:
            self._on_answer(scope["method"], route, status, seconds)
        logger.info(
            "%s %s %d %.1f ms %s",
            scope["method"],
            scope["path"],
            status,
            seconds * 1e3,
            state["request_id"],
        )


def _request_id(scope: Scope) -> str:
    given = _header(scope, b"x-request-id")
    if _SANE_ID.fullmatch(given):
        return given.decode()
    return f"req-{uuid.uuid4().hex}"


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")
