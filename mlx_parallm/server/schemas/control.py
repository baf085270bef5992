"""Requests of those who run the server."""

from __future__ import annotations

from pydantic import Field

from mlx_parallm.server.schemas.base import RequestModel


class AbortRequests(RequestModel):
    """POST /abort_requests."""

    request_ids: list[str] = Field(default_factory=list, description="Empty: all.")
