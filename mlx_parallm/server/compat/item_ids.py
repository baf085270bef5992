"""Ids of responses and of their items: an item's says which response it is of."""

from __future__ import annotations

import re
import uuid

_ITEM = re.compile(r"[a-z]+_(?P<response>[0-9a-f]{32})_[0-9]{1,6}")


def new_response_id() -> str:
    """An id that no other response has."""
    return f"resp_{uuid.uuid4().hex}"


def item_id(kind: str, response_id: str, place: int) -> str:
    """The id of an item.

    Args:
        kind: what it begins with.
        place: in the response's output.
    """
    return f"{kind}_{response_id.removeprefix('resp_')}_{place}"


def response_of(item: str) -> str | None:
    """The id of the response that an item is of; None for an id that is not one of ours."""
    found = _ITEM.fullmatch(item)
    return None if found is None else f"resp_{found['response']}"
