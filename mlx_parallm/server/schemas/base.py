"""What all request bodies have in common: strict types, no unknown fields, null is default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
)
from pydantic import field_validator as _field_validator
from pydantic_core import PydanticCustomError, PydanticUseDefault
from pydantic_core.core_schema import CoreSchema

UNSUPPORTED = "unsupported"

# Ids fit a C long everywhere below; checked here so that no huge number gets further.
MAX_TOKEN_ID = 2**31 - 1


class RequestModel(BaseModel):
    """A JSON object that a client sends.

    Unknown fields are errors, numbers must be finite, and `null` for an optional field means
    its default: clients such as litellm send `"logprobs": null`.
    """

    model_config = ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=()
    )

    @_field_validator("*", mode="before")
    @classmethod
    def _as_json_means_it(cls, value: Any) -> Any:
        """null is the default, and 16.0 is a whole number."""
        if value is None:
            raise PydanticUseDefault
        if type(value) is float and value.is_integer():
            return int(value)
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        json_schema = handler.resolve_ref_schema(handler(schema))
        required = json_schema.get("required", ())
        for name, field in json_schema.get("properties", {}).items():
            if name not in required:
                json_schema["properties"][name] = _nullable(field)
        return json_schema


class LenientModel(RequestModel):
    """A JSON object of an API whose clients send fields that only its owner's server knows."""

    model_config = ConfigDict(extra="ignore")


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    outer: dict[str, Any] = {
        key: schema[key] for key in ("title", "description", "default") if key in schema
    }
    inner = {key: value for key, value in schema.items() if key not in outer}
    if inner == {"type": "null"}:
        return schema
    return {**outer, "anyOf": [*inner.get("anyOf", [inner]), {"type": "null"}]}


def unsupported(message: str, param: str | None = None) -> PydanticCustomError:
    """The error of a parameter that is known here and not supported.

    param: the path of the field below the validator's own place, where that is not the field.
    """
    return _error(UNSUPPORTED, message, param)


def wrong(message: str, param: str | None = None) -> PydanticCustomError:
    """The error of a value that can never be right; `param` as in unsupported()."""
    return _error("value_error", message, param)


def _error(kind: Any, message: str, param: str | None) -> PydanticCustomError:
    # Through the context: braces in a message would be read as a template.
    return PydanticCustomError(kind, "{reason}", {"reason": message, "param": param or ""})


def only(allowed: Any, shown: str) -> Callable[[Any], Any]:
    """A validator for a parameter of which one value is supported."""

    def check(value: Any) -> Any:
        if value != allowed or type(value) is not type(allowed):
            raise unsupported(f"only {shown} is supported")
        return value

    return check


def _refuse(value: Any) -> Any:
    raise unsupported("this parameter is not supported by this server")


# A known parameter that only null is accepted for. (Null never gets to the validator.)
Unsupported = Annotated[None, BeforeValidator(_refuse), WithJsonSchema({"type": "null"})]
FalseOnly = Annotated[
    bool, BeforeValidator(only(False, "false")), WithJsonSchema({"type": "boolean", "const": False})
]

CacheSalt = Annotated[
    str | None,
    Field(
        min_length=1,
        description="Cached prefixes are shared only among requests with the same salt.",
    ),
]
