"""OpenAI's error envelope."""

from __future__ import annotations

from pydantic import BaseModel


class ErrorDetail(BaseModel):
    """What went wrong, for people (message) and for programs (type, param, code)."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorResponse(BaseModel):
    """The body of every response with a status of 400 and above, /health excepted."""

    error: ErrorDetail
