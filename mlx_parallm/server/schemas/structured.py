"""What an answer has to be: OpenAI's response_format, vLLM's structured_outputs, and llama.cpp's
json_schema and grammar."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator

from mlx_parallm.server.schemas.base import FalseOnly, RequestModel, Unsupported, unsupported, wrong

_MAX_CHOICES = 1024


def _schema(value: Any) -> Any:
    """A JSON schema: an object, true or false; or a text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise wrong("expected a JSON schema") from None
    if not isinstance(value, dict | bool):
        raise wrong("expected a JSON schema")
    return value


JsonSchema = Annotated[
    dict[str, Any] | bool,
    BeforeValidator(_schema),
    WithJsonSchema(
        {"type": "object", "properties": {"type": {"const": "object"}}, "maxProperties": 1}
    ),
]
Text = Annotated[str, Field(min_length=1)]


class NamedSchema(RequestModel):
    """A JSON schema as OpenAI's clients send it."""

    name: str = Field(min_length=1, max_length=256)
    description: str | None = None
    held: JsonSchema = Field(alias="schema", description="JSON schema, 2020-12.")
    strict: bool = Field(False, description="false ignores keywords that cannot be enforced.")


class TaggedStructure(RequestModel):
    """A schema between two texts, in free text."""

    begin: Text
    held: JsonSchema = Field(alias="schema")
    end: str


class StructuralTag(RequestModel):
    """Free text in which some texts begin a structure; vLLM's older form."""

    type: Literal["structural_tag"] = "structural_tag"
    structures: list[TaggedStructure] = Field(min_length=1, max_length=_MAX_CHOICES)
    triggers: list[Text] = Field(min_length=1, max_length=_MAX_CHOICES)

    @model_validator(mode="after")
    def _each_has_a_trigger(self) -> Self:
        for place, structure in enumerate(self.structures):
            if not any(structure.begin.startswith(trigger) for trigger in self.triggers):
                raise wrong("no trigger begins this text", f"structures.{place}.begin")
        return self


def _tag(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise wrong("expected a structural tag as JSON") from None
    if isinstance(value, dict) and "format" in value:
        raise unsupported("only structural tags with structures and triggers are supported")
    return value


class ResponseFormat(RequestModel):
    """OpenAI's response_format; vLLM's structural_tag too."""

    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: NamedSchema | None = None
    structures: list[TaggedStructure] | None = None
    triggers: list[Text] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise wrong('it belongs to {"type": "json_schema"}', "json_schema")
        tagged = self.structures is not None and self.triggers is not None
        if (self.type == "structural_tag") != tagged:
            raise wrong('it belongs to {"type": "structural_tag"}', "structures")
        return self

    @property
    def tag(self) -> StructuralTag | None:
        """The structural tag, if it is one."""
        if self.structures is None or self.triggers is None:
            return None
        return StructuralTag(structures=self.structures, triggers=self.triggers)


class StructuredOutputs(RequestModel):
    """vLLM's structured_outputs: one of the first six."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    schema_: JsonSchema | None = Field(None, alias="json", description="A JSON schema.")
    regex: Text | None = None
    choice: list[Text] | None = Field(None, min_length=1, max_length=_MAX_CHOICES)
    grammar: Text | None = Field(None, description="GBNF, or Lark.")
    json_object: bool = False
    structural_tag: Annotated[StructuralTag | None, BeforeValidator(_tag)] = None
    disable_any_whitespace: FalseOnly = False
    disable_additional_properties: FalseOnly = False
    disable_fallback: bool = Field(False, description="Accepted; there is nothing to fall back on.")
    whitespace_pattern: Unsupported = None

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        kinds = (self.schema_, self.regex, self.choice, self.grammar, self.structural_tag)
        if sum(kind is not None for kind in kinds) + self.json_object != 1:
            raise wrong(
                "expected exactly one of json, regex, choice, grammar, json_object, structural_tag"
            )
        return self


def _guided(value: Any) -> Any:
    raise unsupported(
        'the guided_ parameters are no more: send structured_outputs, {"json": ...}, '
        '{"regex": ...}, {"choice": ...} or {"grammar": ...}'
    )


Guided = Annotated[None, BeforeValidator(_guided), WithJsonSchema({"type": "null"})]


class StructuredFields(RequestModel):
    """What the answer has to be; at most one of these."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    json_schema: JsonSchema | None = Field(None, description="llama.cpp's: a JSON schema.")
    grammar: str = Field("", description="llama.cpp's: GBNF, or Lark.")

    guided_json: Guided = None
    guided_regex: Guided = None
    guided_choice: Guided = None
    guided_grammar: Guided = None
    guided_json_object: Guided = None
    guided_decoding_backend: Guided = None
    guided_whitespace_pattern: Guided = None

    @property
    def asks_for_grammar(self) -> bool:
        """Whether there is a grammar, whose reading may take a while."""
        outputs = self.structured_outputs
        return bool(self.grammar) or (outputs is not None and outputs.grammar is not None)

    @model_validator(mode="after")
    def _one_structure(self) -> Self:
        formats = self.response_format is not None and self.response_format.type != "text"
        given = {
            "response_format": formats,
            "structured_outputs": self.structured_outputs is not None,
            "json_schema": self.json_schema is not None,
            "grammar": bool(self.grammar),
        }
        names = [name for name, is_given in given.items() if is_given]
        if len(names) > 1:
            raise wrong(f"it cannot be sent together with {names[0]}", names[1])
        return self
