"""Request bodies: read within the limit, parsed as strict JSON, validated, or a clear 400."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json
from starlette.datastructures import Headers
from starlette.types import Message

from mlx_parallm.errors import BodyTooLargeError, InvalidRequestError, UnsupportedError
from mlx_parallm.server.input.request_defaults import with_defaults
from mlx_parallm.server.schemas.base import UNSUPPORTED, RequestModel
from mlx_parallm.server.state import state_of

_Model = TypeVar("_Model", bound=RequestModel)

_MAX_REASONS = 3
_MAX_SHOWN = 100
# Of a JSON body for which no type was chosen.
_AS_TYPED = frozenset({"", "application/x-www-form-urlencoded"})


async def read_body(request: Request, model: type[_Model], limit: int) -> _Model:
    """The request's JSON body as a validated model; what it leaves open, the server's options say.

    Raises:
        InvalidRequestError: not what the model wants; `param` names the field.
        others as read_json().
    """
    value = await read_json(request, limit)
    return validate(model, with_defaults(value, model, state_of(request).settings))


async def read_json(request: Request, limit: int) -> Any:
    """The request's JSON body.

    Args:
        limit: bytes; a longer body is refused without being held in memory.

    Raises:
        BodyTooLargeError: the body is longer than the limit.
        InvalidRequestError: not JSON.
        starlette.requests.ClientDisconnect: the client went away while sending.
    """
    body = await read_bytes(request, limit)
    # From here to the engine nothing waits for the outside: parsing and tokenizing hold the loop.
    await state_of(request).turnstile.enter()
    return parse_json(body)


async def read_bytes(request: Request, limit: int) -> bytearray:
    """The request's body as it came; arguments and errors as of read_json()."""
    _check_content_type(request.headers)
    return await _read(request, limit)


def with_body(request: Request, body: bytes) -> Request:
    """The same request with its body, which was read, still to be read."""
    begun = False

    async def receive() -> Message:
        nonlocal begun
        if begun:
            return await request.receive()
        begun = True
        return {"type": "http.request", "body": body, "more_body": False}

    return Request(request.scope, receive)


async def read_raw(request: Request, limit: int) -> bytes:
    """The request's body, whatever its type.

    Raises:
        BodyTooLargeError: longer than the limit.
    """
    return bytes(await _read(request, limit))


def parse_json(body: bytes | bytearray) -> Any:
    """JSON as RFC 8259 has it: UTF-8, no NaN, no Infinity, bounded nesting and digits.

    Raises:
        InvalidRequestError: it is not.
    """
    try:
        return from_json(bytes(body), allow_inf_nan=False)
    except ValueError as error:
        raise InvalidRequestError(f"The body is not valid JSON: {error}") from None


def validate(model: type[_Model], value: Any) -> _Model:
    """A parsed body as `model`.

    Raises:
        InvalidRequestError: with the path of the first wrong field as `param`.
    """
    if not isinstance(value, dict):
        raise InvalidRequestError("The body must be a JSON object.")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _as_request_error(error.errors(include_url=False), value) from None


def _check_content_type(headers: Headers) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    # `curl -d` sends a form's type whatever the text is. Browsers send these across origins
    # without asking first, but not without the header Origin: a page that somebody reads must
    # not be able to use a server on their machine.
    if kind in _AS_TYPED and "origin" not in headers:
        return
    raise InvalidRequestError(
        f"Content-Type must be application/json, not {kind[:_MAX_SHOWN] or 'missing'}."
    )


async def _read(request: Request, limit: int) -> bytearray:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(limit)
    body = bytearray()
    async for chunk in request.stream():
        if len(body) + len(chunk) > limit:
            raise _too_large(limit)
        body += chunk
    return body


def _too_large(limit: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"The body is larger than this server's limit of {limit} bytes.")


def _as_request_error(errors: Sequence[ErrorDetails], body: Any) -> InvalidRequestError:
    """One error of ours for pydantic's many: those at the first wrong field, together."""
    located = [(_path(error, body), error) for error in errors]
    path = located[0][0]
    here = [error for other, error in located if other == path]
    if here[0]["type"] == "extra_forbidden":
        return InvalidRequestError(
            f"Unrecognized request argument supplied: {path[:_MAX_SHOWN]}",
            param=path[:_MAX_SHOWN],
            code="unknown_parameter",
        )
    reasons = "; ".join(list(dict.fromkeys(_reason(error) for error in here))[:_MAX_REASONS])
    kind = UnsupportedError if here[0]["type"] == UNSUPPORTED else InvalidRequestError
    message = f"Invalid value for '{path}': {reasons}." if path else f"{reasons}."
    return kind(message, param=path or None)


def _reason(error: ErrorDetails) -> str:
    if error["type"] == "missing":
        return "this field is required"
    message = error["msg"]
    return message[0].lower() + message[1:]


def _path(error: ErrorDetails, body: Any) -> str:
    """The field's path in the client's body, such as "messages.0.content".

    pydantic's location also holds the branch of a union; those parts are not in the body.
    """
    parts: list[str] = []
    at = body
    last = len(error["loc"]) - 1
    for place, part in enumerate(error["loc"]):
        is_missing = error["type"] == "missing" and place == last
        if isinstance(at, dict) and (part in at or is_missing):
            at = at.get(part)
        elif isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        else:
            continue
        parts.append(str(part))
    return ".".join(parts + list(_own_path(error)))


def _own_path(error: ErrorDetails) -> Iterable[str]:
    param = error.get("ctx", {}).get("param")
    return [param] if param else []
