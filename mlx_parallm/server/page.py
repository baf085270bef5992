"""The files of the chat page, and when `/` shows it."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent / "page_assets"
_INDEX = "index.html"
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing is loaded from elsewhere, images that a model writes into its answer included: their
# addresses could carry what was said.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_HEADERS = {
    # Asked for each time, and answered with 304 while the package is the same.
    "cache-control": "no-cache",
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file. tag: changes when its content does."""

    content: bytes
    compressed: bytes
    media_type: str
    tag: str


@cache
def page_files() -> dict[str, PageFile]:
    """Every file that browsers may have, by its path below the folder."""
    found = (path for path in sorted(FOLDER.rglob("*")) if path.suffix in _TYPES)
    return {path.relative_to(FOLDER).as_posix(): _read(path) for path in found}


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    tag = hashlib.sha256(content).hexdigest()[:16]
    return PageFile(content, gzip.compress(content, mtime=0), _TYPES[path.suffix], f'"{tag}"')


def wants_page(request: Request) -> bool:
    """Whether a browser asks for something to show; curl and API clients take anything."""
    return "text/html" in request.headers.get("accept", "")


def index_answer(request: Request) -> Response:
    """The page itself. What `/` answers depends on who asks, which caches must know."""
    answer = file_answer(request, page_files()[_INDEX])
    answer.headers["vary"] = "accept, accept-encoding"
    return answer


def file_answer(request: Request, file: PageFile) -> Response:
    """A file, compressed for who takes that, or 304 for who has it."""
    headers = {**_HEADERS, "etag": file.tag, "vary": "accept-encoding"}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    content = file.content
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
        content = file.compressed
    return Response(content, media_type=file.media_type, headers=headers)
