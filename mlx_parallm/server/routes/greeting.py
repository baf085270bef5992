"""GET / and /version: the chat page for browsers, and what this is."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm import __version__
from mlx_parallm.server.openapi import ERRORS
from mlx_parallm.server.output.responses import json_answer
from mlx_parallm.server.page import index_answer, wants_page

router = APIRouter(tags=["Operation"])


@router.head("/", include_in_schema=False)
@router.get("/", summary="What this is", responses=ERRORS)
async def greet(request: Request) -> Response:
    """The chat page for browsers; for others the server's name and where to go on."""
    if request.method == "GET" and wants_page(request) and not request.app.state.settings.no_ui:
        return index_answer(request)
    return json_answer(
        {"name": "mlx_parallm", "version": __version__, "api": "/v1", "docs": "/docs"}
    )


@router.head("/version", include_in_schema=False)
@router.get("/version", summary="The version", responses=ERRORS)
async def version() -> Response:
    """The version of this package."""
    return json_answer({"version": __version__})
