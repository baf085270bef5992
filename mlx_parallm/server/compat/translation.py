"""Requests of other APIs as our own, with errors that name the client's own fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from mlx_parallm.errors import InvalidRequestError, NotFoundError
from mlx_parallm.server.input.body import validate
from mlx_parallm.server.schemas.base import RequestModel

_Model = TypeVar("_Model", bound=RequestModel)

# What llama.cpp takes as "choose one yourself", beside negative numbers.
_RANDOM_SEED = 2**32 - 1


def translated(model: type[_Model], fields: Mapping[str, Any], names: Mapping[str, str]) -> _Model:
    """`fields` as a request of ours.

    Args:
        names: our field -> the client's name of it, for errors.

    Raises:
        InvalidRequestError: with the client's name as `param`.
    """
    with named(names):
        return validate(model, dict(fields))


@contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors within name the client's own fields; `names` as in translated()."""
    try:
        yield
    except (InvalidRequestError, NotFoundError) as error:
        ours = error.param or ""
        first, dot, rest = ours.partition(".")
        theirs = names.get(ours) or names.get(first, first) + dot + rest
        message = error.message.replace(f"'{ours}'", f"'{theirs}'")
        raise type(error)(message, param=theirs or None, code=error.code) from None


def response_format(schema: Any) -> dict[str, Any] | None:
    """OpenAI's response_format for "json", a JSON schema, or nothing."""
    if schema is None or schema == "":
        return None
    if schema == "json":
        return {"type": "json_object"}
    named_schema = {"name": "answer", "schema": schema, "strict": True}
    return {"type": "json_schema", "json_schema": named_schema}


def seed_of(seed: int | None) -> int | None:
    """A seed of ours: negative ones and 2^32 - 1 mean a new one each time."""
    return None if seed is None or seed < 0 or seed == _RANDOM_SEED else seed


def answer_limit(tokens: int) -> int | None:
    """Tokens to generate at most; below 0 is what fits (None)."""
    return None if tokens < 0 else tokens
