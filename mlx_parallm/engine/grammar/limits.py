"""What a client's grammar may be before it is given to the compiler."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction
from typing import Any

from mlx_parallm.errors import InvalidRequestError

MAX_BYTES = 64 * 1024
MAX_PROPERTIES = 1000
MAX_DEPTH = 100
# A multiple of n is found by an automaton of n states; of several at once, of all their products.
MAX_MULTIPLE = 10_000
_COSTLY = {
    *("pattern", "patternProperties", "properties", "enum", "anyOf", "oneOf", "allOf", "items"),
    *("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum", "multipleOf"),
}
_WITH_A_SIZE = (str, list, dict)


def check_text(text: str) -> str:
    """The text, if it is short enough.

    Raises:
        InvalidRequestError: it is not.
    """
    size = len(text.encode("utf8", "surrogatepass"))
    if size > MAX_BYTES:
        raise InvalidRequestError(
            f"this grammar has {size} bytes; at most {MAX_BYTES} are compiled."
        )
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise InvalidRequestError("this grammar is no valid text: it has half of a surrogate pair.")
    return text


def schema_text(schema: Any) -> str:
    """A JSON schema as text, if it is not too large. Looked at without recursion.

    Raises:
        InvalidRequestError: it is too large, too deep or has too many properties.
    """
    properties, multiple = 0, 1
    waiting: list[tuple[Any, int]] = [(schema, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise InvalidRequestError(
                f"this JSON schema is nested too deeply: at most {MAX_DEPTH} levels are compiled."
            )
        if isinstance(value, dict):
            named = value.get("properties")
            properties += len(named) if isinstance(named, dict) else 0
            if "multipleOf" in value:
                multiple = math.lcm(multiple, _multiple(value["multipleOf"]))
            waiting += [(inner, depth + 1) for inner in value.values()]
        elif isinstance(value, list):
            waiting += [(inner, depth + 1) for inner in value]
    if properties > MAX_PROPERTIES:
        raise InvalidRequestError(
            f"this JSON schema has {properties} properties; at most {MAX_PROPERTIES} are compiled."
        )
    if multiple > MAX_MULTIPLE:
        raise InvalidRequestError(
            f"this JSON schema has too large numbers for multipleOf: their least common multiple "
            f"is over {MAX_MULTIPLE}."
        )
    return check_text(json.dumps(schema, ensure_ascii=False))


def largest_keyword(schema: Any) -> str | None:
    """The costly keyword that most of a schema, or of a value that holds one, is about."""
    sizes: Counter[str] = Counter()
    waiting = [schema]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            for name in _COSTLY & value.keys():
                sizes[name] += len(value[name]) if isinstance(value[name], _WITH_A_SIZE) else 1
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return max(sizes, key=lambda name: (sizes[name], name), default=None)


def _multiple(value: Any) -> int:
    """Digits of the number, as a whole one; 1 for what is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return 1
    return max(1, abs(Fraction(str(value)).numerator))
