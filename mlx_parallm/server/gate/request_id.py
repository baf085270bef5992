"""The id of a request: the client's own where it is sane, else a new one."""

from __future__ import annotations

import re
import uuid

_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def new_request_id() -> str:
    """An id that nobody has used."""
    return f"req-{uuid.uuid4().hex}"


def request_id_from(header: bytes) -> str:
    """The id for a request with this x-request-id; empty: none was sent."""
    return header.decode() if _SANE.fullmatch(header) else new_request_id()
