"""JSON that leaves the server: compact, and finite everywhere.

JSON has no NaN and no infinity; where a value holds one (a `time_step_limit` of a config, for
example) it is sent as null, as JavaScript does.
"""

from __future__ import annotations

import json
import math
from typing import Any

from starlette.responses import JSONResponse


def compact(value: Any) -> str:
    """JSON as a part of an answer or of an event."""
    try:
        return _dump(value)
    except ValueError:
        # Looked for only now: nearly all answers are finite, and walking through them is slow.
        return _dump(_finite(value))


def to_json(value: Any) -> bytes:
    """JSON as a whole body, in UTF-8."""
    return compact(value).encode()


class FiniteJSONResponse(JSONResponse):
    """A response whose content is written by to_json()."""

    def render(self, content: Any) -> bytes:
        return to_json(content)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _finite(value: Any) -> Any:
    """The value with null for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {_finite_key(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


def _finite_key(key: Any) -> Any:
    return str(key) if isinstance(key, float) and not math.isfinite(key) else key
