"""Every failure as OpenAI's envelope, or as the envelope of the API that was called."""

from __future__ import annotations

import logging
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from mlx_parallm.errors import InvalidRequestError, ParallmError, SequenceError
from mlx_parallm.server.compat.error_shapes import shaped, status_for
from mlx_parallm.server.output.json_text import FiniteJSONResponse

logger = logging.getLogger(__name__)

# Logged for a client that went away before its answer; nobody receives it.
CLIENT_CLOSED_REQUEST = 499
# Characters of a path that an error repeats.
_MAX_SHOWN = 200


def add_handlers(app: FastAPI) -> None:
    """Register the handlers for our errors and for the framework's own."""
    app.add_exception_handler(ParallmError, _on_parallm_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_wrong_parameter)


def error_response(error: ParallmError, scope: Scope) -> Response:
    """The envelope, with Retry-After where trying again makes sense."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    status = status_for(scope["path"], error.status)
    return FiniteJSONResponse(envelope_for(error, scope), status_code=status, headers=headers)


def envelope_for(error: ParallmError, scope: Scope) -> dict[str, Any]:
    """The error's envelope; that of a fault of ours names the request, for the operator's log."""
    envelope: dict[str, Any] = error.envelope()
    if error.status == 500:
        envelope["error"]["message"] += f" The request's id is {request_id_of(scope)}."
    return shaped(scope["path"], error.status, envelope)


def internal_error(error: BaseException, scope: Scope) -> ParallmError:
    """What the client may know of a fault of ours; the log gets the rest."""
    logger.error("request %s failed", request_id_of(scope), exc_info=error)
    return SequenceError("The server failed on this request.")


def request_id_of(scope: Scope) -> str:
    """The id in this request's x-request-id."""
    return str(scope["state"]["request_id"])


async def _on_parallm_error(request: Request, error: Exception) -> Response:
    return error_response(cast(ParallmError, error), request.scope)


async def _on_wrong_parameter(request: Request, error: Exception) -> Response:
    """A query parameter that is not what its route says."""
    first = cast(RequestValidationError, error).errors()[0]
    wrong = InvalidRequestError(first["msg"] + ".", param=str(first["loc"][-1]))
    return error_response(wrong, request.scope)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """404 and 405 of the router."""
    error = cast(HTTPException, error)
    path, method = request.url.path[:_MAX_SHOWN], request.method
    messages = {
        404: f"Unknown route: {method} {path}",
        405: f"{path} does not allow the method {method}",
    }
    codes = {404: "unknown_url", 405: "method_not_allowed"}
    envelope = {
        "message": messages.get(error.status_code, str(error.detail)),
        "type": "invalid_request_error",
        "param": None,
        "code": codes.get(error.status_code),
    }
    answer = shaped(path, error.status_code, {"error": envelope})
    return FiniteJSONResponse(answer, status_code=error.status_code, headers=error.headers)
