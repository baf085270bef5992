"""Nothing that a client sends is ignored: what a route does not declare is a 400.

A route declares query parameters in its signature and a body with `body_of()`. One that is to
ignore what it does not know says so: `openapi_extra=body_of(Model) | IGNORES_UNKNOWN`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel

from mlx_parallm.errors import InvalidRequestError

_MARK = "x-ignores-unknown"
IGNORES_UNKNOWN: dict[str, Any] = {_MARK: True}

_MAX_SHOWN = 100


async def refuse_undeclared(request: Request) -> None:
    """A dependency of every route.

    Raises:
        InvalidRequestError: a query parameter that the route does not have, which `param`
            names, or a body where it reads none.
    """
    route = request.scope.get("route")
    if not isinstance(route, APIRoute) or (route.openapi_extra or {}).get(_MARK):
        return
    if request.scope["query_string"]:
        _check_query(request, set(_names_below(route.dependant)))
    if not _reads_body(route) and _has_body(request):
        raise InvalidRequestError(
            f"{request.method} {route.path} takes no body.", code="unknown_parameter"
        )


def _check_query(request: Request, known: set[str]) -> None:
    for name in request.query_params:
        if name not in known:
            shown = name[:_MAX_SHOWN]
            hint = f"it has {', '.join(sorted(known))}" if known else "it has none"
            raise InvalidRequestError(
                f"Unrecognized query parameter supplied: {shown}; {hint}.",
                param=shown,
                code="unknown_parameter",
            )


def _names_below(dependant: Dependant) -> Iterator[str]:
    for field in dependant.query_params:
        model = field.field_info.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            yield from (entry.alias or name for name, entry in model.model_fields.items())
        else:
            yield field.alias
    for inner in dependant.dependencies:
        yield from _names_below(inner)


def _reads_body(route: APIRoute) -> bool:
    return route.body_field is not None or "requestBody" in (route.openapi_extra or {})


def _has_body(request: Request) -> bool:
    length = request.headers.get("content-length", "0").lstrip("0")
    return bool(length) or "transfer-encoding" in request.headers
