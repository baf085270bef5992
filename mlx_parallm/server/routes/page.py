"""GET /page/...: scripts and style sheets of the chat page, which `/` shows to browsers."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from mlx_parallm.errors import NotFoundError
from mlx_parallm.server.page import file_answer, page_files

router = APIRouter(include_in_schema=False)


@router.get("/page/{path:path}")
def page_file(request: Request, path: str) -> Response:
    """A file of the page; none with --no-ui."""
    file = page_files().get(path)
    if file is None or request.app.state.settings.no_ui:
        raise NotFoundError(f"There is no file {path[:100]!r}.", code="unknown_url")
    return file_answer(request, file)
