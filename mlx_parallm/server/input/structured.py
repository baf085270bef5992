"""From a request's fields to the grammar that its answers keep to, and the gate before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llguidance import StructTag

from mlx_parallm.engine.grammar import Gate, Grammar
from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.server.answer import Dialect
from mlx_parallm.server.answer.call_grammar import Wanted
from mlx_parallm.server.answer.harmony import ANSWER_CHANNEL, begun_channel
from mlx_parallm.server.schemas.chat import ChatCompletionRequest
from mlx_parallm.server.schemas.structured import (
    StructuralTag,
    StructuredFields,
    StructuredOutputs,
)


@dataclass(frozen=True, slots=True)
class Structure:
    """A grammar that was asked for. param: the request's field, for errors."""

    grammar: Grammar
    param: str


def structure_of(body: StructuredFields, tokenizer: Any) -> Structure | None:
    """The structure that a request asks for; None for free text.

    Raises:
        InvalidRequestError: it is too large, or cannot be read.
    """
    asked = body.response_format
    if asked is not None and asked.json_schema is not None:
        named = asked.json_schema
        return _structure(
            "response_format.json_schema.schema",
            lambda: Grammar.json_schema(named.held, strict=named.strict),
        )
    if asked is not None and asked.type == "json_object":
        return Structure(Grammar.json_object(), "response_format")
    tag = None if asked is None else asked.tag
    if tag is not None:
        return _structure("response_format", lambda: _tagged(tag, tokenizer))
    if body.structured_outputs is not None:
        return _of_outputs(body.structured_outputs, tokenizer)
    schema = body.json_schema
    if schema is not None:
        return _structure("json_schema", lambda: Grammar.json_schema(schema))
    if body.grammar:
        return _structure("grammar", lambda: Grammar.gbnf(body.grammar))
    return None


def _of_outputs(asked: StructuredOutputs, tokenizer: Any) -> Structure:
    """vLLM's; one of them is set."""
    schema, choice, tag = asked.schema_, asked.choice, asked.structural_tag
    prefix = "structured_outputs."
    if schema is not None:
        return _structure(prefix + "json", lambda: Grammar.json_schema(schema))
    if asked.regex is not None:
        return _structure(prefix + "regex", lambda: Grammar.regex(asked.regex or ""))
    if choice is not None:
        return _structure(prefix + "choice", lambda: Grammar.choice(choice))
    if asked.grammar is not None:
        return _structure(prefix + "grammar", lambda: Grammar.gbnf(asked.grammar or ""))
    if tag is not None:
        return _structure(prefix + "structural_tag", lambda: _tagged(tag, tokenizer))
    return Structure(Grammar.json_object(), prefix + "json_object")


def _structure(param: str, make: Callable[[], Grammar]) -> Structure:
    try:
        return Structure(make(), param)
    except InvalidRequestError as error:
        message = f"Invalid value for '{param}': {error.message}"
        raise InvalidRequestError(message, param=param) from None


def _tagged(tag: StructuralTag, tokenizer: Any) -> Grammar:
    special = set(getattr(tokenizer, "all_special_tokens", ()))
    tags = []
    for structure in tag.structures:
        trigger = max((t for t in tag.triggers if structure.begin.startswith(t)), key=len)
        schema = structure.held if isinstance(structure.held, dict) else {"allOf": [structure.held]}
        tags.append(
            StructTag(trigger=trigger, begin=structure.begin, grammar=schema, end=structure.end)
        )
    by_token = all(one.trigger in special for one in tags)
    return Grammar.lark(StructTag.to_grammar(tags, assume_special=by_token))


def calls_of(body: ChatCompletionRequest, dialect: Dialect) -> Structure | None:
    """The calls that a chat asks for; None where they need not keep to anything.

    Raises:
        UnsupportedError: the model's calls have no grammar here.
        InvalidRequestError: a schema is too large, or one that cannot be held to.
    """
    choice, tools = body.tool_choice, body.callable_tools
    strict = any(tool.function.strict for tool in tools)
    if choice.mode == "none" or not tools or (choice.mode == "auto" and not strict):
        return None
    functions = [tool.function.model_dump(exclude_none=True) for tool in tools]
    wanted = Wanted(
        functions,
        forced=choice.mode == "required",
        several=body.parallel_tool_calls and not choice.is_named,
    )
    text = dialect.call_grammar(wanted)
    return _structure("tools", lambda: Grammar.lark(text))


def gate_before_answer(dialect: Dialect, prompt: str, continued: str | None) -> Gate | None:
    """What lets a model think before its answer has to keep to a grammar.

    Args:
        prompt: its text.
        continued: the message in it that the answer goes on with; None for a new one.
    """
    if dialect.is_harmony:
        begun = begun_channel(prompt) == ANSWER_CHANNEL
        return None if begun else Gate(dialect.answer_start_ids)
    thinking = dialect.thinking
    if thinking is None:
        return None
    if thinking.is_open(prompt, continued):
        return Gate(thinking.end_ids)
    thought = prompt.rstrip().endswith(thinking.end) or dialect.thinks_where_opened
    if continued is not None or thought or len(thinking.start_ids) != 1:
        return None
    return Gate(thinking.end_ids, opener=thinking.start_ids[0])
