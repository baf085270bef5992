"""GET /docs and /redoc: the API document as pages, from files of this package."""

from __future__ import annotations

import gzip
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import Response

from mlx_parallm.errors import NotFoundError

router = APIRouter(include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "doc_assets"
_TYPES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
}
_TITLE, _DOCUMENT, _NO_ICON = "mlx_parallm", "/openapi.json", "data:,"
# Nothing is loaded from elsewhere, whatever the scripts ask for (Redoc wants a logo).
_POLICY = (
    "default-src 'self' 'unsafe-inline' data: blob:; script-src 'self' 'unsafe-inline' blob:; "
    "worker-src blob:; frame-ancestors 'none'"
)


@router.get("/docs")
async def docs() -> Response:
    """Swagger UI, in which requests can be tried."""
    return _sealed(
        get_swagger_ui_html(
            openapi_url=_DOCUMENT,
            title=_TITLE,
            swagger_js_url="/docs/swagger-ui-bundle.js",
            swagger_css_url="/docs/swagger-ui.css",
            swagger_favicon_url=_NO_ICON,
        )
    )


@router.get("/redoc")
async def redoc() -> Response:
    """Redoc, for reading."""
    return _sealed(
        get_redoc_html(
            openapi_url=_DOCUMENT,
            title=_TITLE,
            redoc_js_url="/docs/redoc.standalone.js",
            redoc_favicon_url=_NO_ICON,
            with_google_fonts=False,
        )
    )


def _sealed(page: Response) -> Response:
    """A page that may load nothing from elsewhere."""
    page.headers["content-security-policy"] = _POLICY
    return page


@router.get("/docs/{name}")
def asset(request: Request, name: str) -> Response:
    """A script or style sheet of the pages; compressed, as it is stored, for who takes that."""
    if name not in _TYPES:
        raise NotFoundError(f"There is no file {name[:100]!r}.", code="unknown_url")
    content = (_FOLDER / f"{name}.gz").read_bytes()
    headers = {"cache-control": "public, max-age=86400", "vary": "accept-encoding"}
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
    else:
        content = gzip.decompress(content)
    return Response(content, media_type=_TYPES[name], headers=headers)
