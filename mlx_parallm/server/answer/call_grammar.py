"""Grammars of tool calls in a model's own format, in llguidance's Lark.

The syntax: https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from mlx_parallm.server.answer.call_formats import CallFormat

# White space between two parts of a JSON text: a model that would write it for ever cannot.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"
_NOTHING = '""'
# What cannot be held to in a text that is written without quotes.
_OF_TEXTS = ("pattern", "format", "minLength", "maxLength")
_OTHER_TYPES = ("anyOf", "oneOf", "allOf", "$ref")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which calls an answer may hold.

    Attributes:
        functions: of the tools that may be called, in OpenAI's shape.
        forced: the answer is calls and nothing else; otherwise they stand in free text.
        several: more than one call is allowed.
    """

    functions: Sequence[dict[str, Any]]
    forced: bool
    several: bool


@dataclass(slots=True)
class _Writer:
    """Collects the rules of a grammar.

    Attributes:
        added: ids of tokens that stand for themselves, by their text: no grammar's text has them.
    """

    added: dict[str, int]
    rules: list[str] = field(default_factory=list)

    def rule(self, name: str, body: str) -> str:
        """Add a rule; returns its name."""
        self.rules.append(f"{name}: {body or _NOTHING}")
        return name

    def text(self, text: str) -> str:
        """A text; what is written like a token of its own in it is that token."""
        parts = self._pattern.split(text) if self.added else [text]
        return " ".join(self._part(part) for part in parts if part) or _NOTHING

    def until(self, name: str, end: str) -> str:
        """Any text up to and with its first `end`."""
        if self.has_token(end):
            # Such tokens are no part of any text.
            self.rules.append(f"{name.upper()}_TEXT: /(.|\\n)*/")
            return f"{name.upper()}_TEXT {self.text(end)}"
        self.rules.append(f"{name}[suffix={json.dumps(end)}]: /(.|\\n)*/")
        return name

    def has_token(self, text: str) -> bool:
        """Whether a token of its own is in it."""
        return any(token in text for token in self.added)

    def _part(self, part: str) -> str:
        token = self.added.get(part)
        return json.dumps(part, ensure_ascii=False) if token is None else f"<[{token}]>"

    @property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self.added, key=len, reverse=True)
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})")


@dataclass(frozen=True, slots=True)
class _Form:
    """How calls of one format are put together.

    Attributes:
        call: (writer, rule's name, function) -> one call, without the markers around it.
        before, after: inside the markers.
        between: calls that stand within one pair of markers; None where each has its own.
    """

    call: Callable[[_Writer, str, dict[str, Any]], str]
    before: str = ""
    after: str = ""
    between: str | None = None


def call_grammar(format_: CallFormat, wanted: Wanted, added: dict[str, int]) -> str:
    """The grammar of an answer with calls.

    Args:
        added: ids of tokens that the tokenizer has beside its vocabulary's, by their text.

    Raises:
        UnsupportedError: this format has no grammar here.
        InvalidRequestError: something that the format cannot be held to.
    """
    form = _form_of(format_, added)
    if form is None:
        raise UnsupportedError(
            "This model's calls have no grammar here: only tool_choice none and auto are "
            "supported, without strict.",
            param="tool_choice",
        )
    writer = _Writer(added)
    calls = [
        writer.rule(f"f{place}", form.call(writer, f"f{place}", function))
        for place, function in enumerate(wanted.functions)
    ]
    writer.rule("one", " | ".join(calls))
    inside = _inside(writer, form, wanted.several)
    start = writer.text(format_.start)
    end = writer.text(format_.end) if format_.end else _NOTHING
    repeats = wanted.several and form.between is None
    if wanted.forced:
        again = f" ({_gap(format_)} {start} {inside} {end})*" if repeats else ""
        return _joined(f"{start} {inside} {end}{again}", writer)
    return _joined(_in_free_text(writer, format_, f"{inside} {end}", repeats), writer)


def _inside(writer: _Writer, form: _Form, several: bool) -> str:
    one = "one"
    if form.between is not None and several:
        one = f"one ({writer.text(form.between)} one)*" if form.between else "one+"
    parts = (writer.text(form.before), one, writer.text(form.after))
    return writer.rule("inside", " ".join(part for part in parts if part != _NOTHING))


def _gap(format_: CallFormat) -> str:
    return '"\\n"' if format_.end else _NOTHING


def _in_free_text(writer: _Writer, format_: CallFormat, rest: str, repeats: bool) -> str:
    """Text, in which the start of a call begins a call."""
    writer.rule("call", f"{writer.until('before', format_.start)} {rest}")
    if writer.has_token(format_.start):
        writer.rules.append("TAIL: /(.|\\n)*/")
    else:
        marker = re.escape(format_.start).replace("/", "\\/")
        writer.rules.append(f"TAIL: /(.|\\n)*/ & ~/(.|\\n)*{marker}(.|\\n)*/")
    return "call* TAIL" if repeats else "call? TAIL"


def _joined(start: str, writer: _Writer) -> str:
    return "\n".join([f"start: {start}", *writer.rules]) + "\n"


# Arguments


def _schema(function: dict[str, Any]) -> dict[str, Any]:
    schema = dict(function.get("parameters") or {})
    schema.pop("x-guidance", None)
    schema.setdefault("type", "object")
    return schema


def _json(function: dict[str, Any], schema: Any) -> str:
    """JSON that a schema allows; keywords that cannot be held to only matter where it is strict."""
    options: dict[str, Any] = {"whitespace_pattern": _WHITESPACE}
    if not function.get("strict"):
        options |= {"lenient": True, "coerce_one_of": True}
    held = schema if isinstance(schema, dict) else {"allOf": [schema]}
    root = function.get("parameters") or {}
    shared = {name: root[name] for name in ("$defs", "definitions") if name in root}
    return "%json " + json.dumps({**shared, **held, "x-guidance": options}, ensure_ascii=False)


def _json_call(before: str, after: str) -> Callable[[_Writer, str, dict[str, Any]], str]:
    """A call whose arguments are a JSON object. before: with NAME for the name in quotes."""

    def call(writer: _Writer, name: str, function: dict[str, Any]) -> str:
        head = before.replace("NAME", json.dumps(function["name"], ensure_ascii=False))
        arguments = writer.rule(f"{name}_args", _json(function, _schema(function)))
        tail = f" {writer.text(after)}" if after else ""
        return f"{writer.text(head)} {arguments}{tail}"

    return call


def _kimi_call(writer: _Writer, name: str, function: dict[str, Any]) -> str:
    arguments = writer.rule(f"{name}_args", _json(function, _schema(function)))
    marks = [writer.text(f"<|tool_call_{mark}|>") for mark in ("begin", "argument_begin", "end")]
    head = json.dumps(f"functions.{function['name']}:")
    return f"{marks[0]} {head} /[0-9]{{1,2}}/ {marks[1]} {arguments} {marks[2]}"


def _mistral_call(writer: _Writer, name: str, function: dict[str, Any]) -> str:
    arguments = writer.rule(f"{name}_args", _json(function, _schema(function)))
    return f"{writer.text(function['name'])} {writer.text('[ARGS]')} {arguments}"


def _tagged_call(
    head: str, opening: str, closing: str, end: str
) -> Callable[[_Writer, str, dict[str, Any]], str]:
    """A call whose values stand between tags; NAME and KEY are replaced."""

    def call(writer: _Writer, name: str, function: dict[str, Any]) -> str:
        parts = [writer.text(head.replace("NAME", function["name"]))]
        for place, (key, schema, optional) in enumerate(_properties(function)):
            before = writer.text(opening.replace("KEY", key))
            value = _tagged_value(writer, f"{name}_v{place}", function, key, schema, closing)
            rule = writer.rule(f"{name}_p{place}", f"{before} {value}")
            parts.append(f"{rule}?" if optional else rule)
        return " ".join([*parts, *([writer.text(end)] if end else [])])

    return call


def _tagged_value(
    writer: _Writer, rule: str, function: dict[str, Any], key: str, schema: Any, closing: str
) -> str:
    """A value and what closes it."""
    if not _is_text(schema):
        return f"{writer.rule(rule, _json(function, schema))} {writer.text(closing)}"
    choices = _choices(schema)
    if choices is not None:
        options = " | ".join(json.dumps(str(choice), ensure_ascii=False) for choice in choices)
        return f"{writer.rule(rule, options)} {writer.text(closing)}"
    _refuse_keywords(function, key, schema)
    return writer.until(rule, closing)


def _listed_call(
    head: str, pair: str, end: str, value: Callable[[_Writer, dict[str, Any], str, Any], str],
    comma: str,
) -> Callable[[_Writer, str, dict[str, Any]], str]:  # fmt: skip
    """A call whose arguments are a list of pairs with commas between them."""

    def call(writer: _Writer, name: str, function: dict[str, Any]) -> str:
        known = list(_properties(function))
        # s: nothing is written yet; t: a comma is needed.
        for place in range(len(known), -1, -1):
            for state, before in (("s", ""), ("t", comma)):
                body = ""
                if place < len(known):
                    key, schema, optional = known[place]
                    lead = writer.text(before + pair.replace("KEY", key))
                    shown = writer.rule(
                        f"{name}_{state}v{place}", value(writer, function, key, schema)
                    )
                    body = f"{lead} {shown} {name}_t{place + 1}"
                    body += f" | {name}_{state}{place + 1}" if optional else ""
                writer.rule(f"{name}_{state}{place}", body)
        begin = writer.text(head.replace("NAME", function["name"]))
        return f"{begin} {name}_s0 {writer.text(end)}"

    return call


def _python_value(writer: _Writer, function: dict[str, Any], key: str, schema: Any) -> str:
    return _json(function, schema)


def _gemma_value(writer: _Writer, function: dict[str, Any], key: str, schema: Any) -> str:
    if _is_text(schema):
        quote, choices = writer.text("<escape>"), _choices(schema)
        inside = "/[^{}<]*/"
        if choices is not None:
            inside = "(" + " | ".join(json.dumps(str(one)) for one in choices) + ")"
        else:
            _refuse_keywords(function, key, schema)
        return f"{quote} {inside} {quote}"
    if not isinstance(schema, dict) or schema.get("type") not in ("integer", "number", "boolean"):
        raise InvalidRequestError(
            f"This model's calls have numbers, texts and booleans only; {key!r} of "
            f"{function['name']!r} is something else.",
            param="tools",
        )
    return _json(function, schema)


def _properties(function: dict[str, Any]) -> Iterable[tuple[str, Any, bool]]:
    """Name, schema, and whether it may be left out."""
    schema = function.get("parameters") or {}
    required = schema.get("required") or ()
    for key, held in (schema.get("properties") or {}).items():
        yield key, held, key not in required


def _is_text(schema: Any) -> bool:
    return (
        isinstance(schema, dict)
        and schema.get("type", "string") == "string"
        and not any(name in schema for name in _OTHER_TYPES)
        and ("type" in schema or all(isinstance(one, str) for one in _choices(schema) or [0]))
    )


def _choices(schema: dict[str, Any]) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    choices = schema.get("enum")
    return choices if isinstance(choices, list) and choices else None


def _refuse_keywords(function: dict[str, Any], key: str, schema: dict[str, Any]) -> None:
    """A strict tool is one whose schema is held to, or it is refused."""
    found = next((name for name in _OF_TEXTS if name in schema), None)
    if function.get("strict") and found is not None:
        raise InvalidRequestError(
            f"This model's calls write texts without quotes, where {found!r} of {key!r} of "
            f"{function['name']!r} cannot be held to: leave strict out.",
            param="tools",
        )


def _glm_form(prefix: str) -> _Form:
    opening = f"<{prefix}arg_key>KEY</{prefix}arg_key><{prefix}arg_value>"
    return _Form(_tagged_call("NAME", opening, f"</{prefix}arg_value>", ""))


_FORMS = {
    "json_tools": _Form(_json_call('{"name": NAME, "arguments": ', "}"), "\n", "\n"),
    "qwen3_coder": _Form(
        _tagged_call("<function=NAME>\n", "<parameter=KEY>\n", "\n</parameter>\n", "</function>"),
        "\n",
        "\n",
    ),
    "minimax_m2": _Form(
        _tagged_call(
            '<invoke name="NAME">\n', '<parameter name="KEY">', "</parameter>\n", "</invoke>\n"
        ),
        "\n",
        between="",
    ),
    "glm47": _glm_form(""),
    "longcat": _glm_form("longcat_"),
    "pythonic": _Form(_listed_call("NAME(", "KEY=", ")", _python_value, ", "), "[", "]", ", "),
    "function_gemma": _Form(_listed_call("call:NAME{", "KEY:", "}", _gemma_value, ",")),
    "kimi_k2": _Form(_kimi_call, between=""),
    "mistral": _Form(_mistral_call),
}  # fmt: skip
# Of models that are older than the token [ARGS].
_OLD_MISTRAL = _Form(
    _json_call('{"name": NAME, "arguments": ', "}"), before="[", after="]", between=", "
)


def _form_of(format_: CallFormat, added: dict[str, int]) -> _Form | None:
    if format_.name == "mistral" and "[ARGS]" not in added:
        return _OLD_MISTRAL
    return _FORMS.get(format_.name)
