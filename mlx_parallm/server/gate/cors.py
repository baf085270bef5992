"""Which web pages may call this server from a browser."""

from __future__ import annotations

import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from mlx_parallm.server.gate.request_id import new_request_id
from mlx_parallm.server.output.json_text import FiniteJSONResponse

# Pages that this machine serves itself, on any port.
LOOPBACK = re.compile(r"https?://(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])(:\d{1,5})?")


class Cors(CORSMiddleware):
    """CORS for loopback pages and for the origins that the operator names.

    Args:
        origins: such as "https://app.example"; "*" is all.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str] = ()) -> None:
        super().__init__(
            app,
            allow_origins=list(origins),
            allow_origin_regex=LOOPBACK.pattern,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """As Starlette's; a refusal is in our envelope and says what to do."""
        answer = super().preflight_response(request_headers)
        answer.headers["x-request-id"] = new_request_id()
        if answer.status_code < 400:
            return answer
        origin = request_headers.get("origin", "")[:200]
        error = {
            "message": f"Pages of the origin {origin!r} may not call this server; "
            "the option --cors-origin allows an origin.",
            "type": "invalid_request_error",
            "param": None,
            "code": "origin_not_allowed",
        }
        kept = {
            name: value
            for name, value in answer.headers.items()
            if name not in ("content-length", "content-type")
        }
        return FiniteJSONResponse({"error": error}, status_code=answer.status_code, headers=kept)
