"""The gate that every request passes: request id, key, one log line; exceptions become 500s."""

from __future__ import annotations

import logging
import time
from urllib.parse import quote

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mlx_parallm.errors import AuthenticationError, ParallmError
from mlx_parallm.server.gate.admission import Admission
from mlx_parallm.server.gate.clients import ApiClient, Clients
from mlx_parallm.server.gate.request_id import request_id_from
from mlx_parallm.server.handlers import CLIENT_CLOSED_REQUEST, error_response, internal_error
from mlx_parallm.server.observing.record import OnAnswer, RequestRecord, current

logger = logging.getLogger("mlx_parallm.access")

_OPEN_PATHS = frozenset({"/", "/health", "/ping", "/version", "/docs", "/redoc", "/openapi.json"})
_OPEN_FOLDERS = ("/docs/", "/page/")
_MAX_METHOD = 20
_MAX_LOGGED_PATH = 200
# What a URL may hold unescaped in its path.
_PATH_CHARACTERS = "/:@!$&'()*+,;=~-._"


def mark_client_gone(scope: Scope) -> None:
    """Remember that nobody reads this answer any more; the log line will say 499."""
    scope["state"]["client_gone"] = True


class Gate:
    """ASGI middleware around all routes.

    Args:
        admission: who may enter.
        clients: who has a key; empty lets everybody in.
        on_answer: called once a request with (method, route, status, seconds, record).
    """

    def __init__(
        self,
        app: ASGIApp,
        admission: Admission,
        clients: Clients,
        on_answer: OnAnswer | None = None,
    ) -> None:
        self._app = app
        self._admission = admission
        self._clients = clients
        self._on_answer = on_answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = time.perf_counter()
        status = 0
        request_id = request_id_from(_header(scope, b"x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id
        added = [(b"x-request-id", request_id.encode())]
        scope["state"]["added_headers"] = added
        traceparent = _header(scope, b"traceparent").decode("latin-1")
        scope["state"]["record"] = RequestRecord(traceparent=traceparent)
        if "refusal" in scope["state"]:
            # The connection is one too many.
            added.append((b"connection", b"close"))

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *added]
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
        record: RequestRecord = scope["state"]["record"]
        client = self._client_of(scope)
        refusal = self._refusal(scope, client)
        if client is not None:
            scope["state"]["added_headers"].extend(client.allowance.headers())
        if refusal is not None:
            await error_response(refusal, scope)(scope, receive, send)
            return
        record.client = client
        current.set(record)
        with self._admission.entered(scope):
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, client: ApiClient | None) -> ParallmError | None:
        path = scope["path"]
        is_open = path in _OPEN_PATHS or path.startswith(_OPEN_FOLDERS)
        if self._clients and client is None and not is_open:
            return AuthenticationError("Incorrect or missing API key: send a bearer token.")
        refusal = self._admission.refusal(scope)
        if refusal is None and client is not None and scope["method"] == "POST":
            refusal = client.allowance.take_request()
        return refusal

    def _client_of(self, scope: Scope) -> ApiClient | None:
        """Whose key came with the request; None for no key or a wrong one."""
        if not self._clients:
            return None
        scheme, _, token = _header(scope, b"authorization").partition(b" ")
        client = self._clients.find(token.strip()) if scheme.lower() == b"bearer" else None
        # Anthropic's clients send their key in a header of its own.
        return client or self._clients.find(_header(scope, b"x-api-key").strip())

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        state = scope["state"]
        if state.get("client_gone"):
            status = CLIENT_CLOSED_REQUEST
        route = getattr(scope.get("route"), "path", "other")
        if self._on_answer is not None:
            self._on_answer(scope["method"], route, status, seconds, state["record"])
        if logger.isEnabledFor(logging.INFO):
            _log(scope, status, seconds)


def _log(scope: Scope, status: int, seconds: float) -> None:
    """One line a request."""
    state, path = scope["state"], _loggable(scope["path"])
    method, facts = scope["method"][:_MAX_METHOD], state["record"].facts()
    shown = "".join(f" {name}={value}" for name, value in facts.items())
    facts = {
        "method": method,
        "path": path,
        "status": status,
        "ms": round(seconds * 1e3, 3),
        "request_id": state["request_id"],
        **facts,
    }
    line = f"{method} {path} {status} {seconds * 1e3:.1f} ms {state['request_id']}{shown}"
    logger.info(line, extra={"facts": facts})


def _loggable(path: str) -> str:
    """A path for one line of the log: no control characters, and not longer than a line is."""
    shown = quote(path[:_MAX_LOGGED_PATH], safe=_PATH_CHARACTERS, errors="replace")
    return shown if len(path) <= _MAX_LOGGED_PATH else f"{shown}... ({len(path)} characters)"


def _header(scope: Scope, name: bytes) -> bytes:
    return next((value for key, value in scope["headers"] if key == name), b"")
