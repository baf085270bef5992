"""A Grammar: what an answer has to be, as llguidance wants it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import llguidance
from llguidance import LLMatcher

from mlx_parallm.engine.grammar.limits import check_text, schema_text
from mlx_parallm.errors import InvalidRequestError

# White space between two parts of a JSON text: a model that would write it for ever cannot.
_WHITESPACE = r"[\x20\x0A\x0D\x09]{1,32}"


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer has to be. Equal ones are compiled once.

    Attributes:
        source: JSON of llguidance: {"grammars": [...]}.
        noun: what errors call it.
    """

    source: str
    noun: str = "grammar"

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | bool, *, strict: bool = True) -> Grammar:
        """JSON that is valid under a schema (2020-12, as far as llguidance has it).

        Properties come in the schema's order.

        Args:
            strict: False ignores keywords that cannot be enforced, and reads oneOf as anyOf.

        Raises:
            InvalidRequestError: the schema is too large or too deep.
        """
        if isinstance(schema, bool):
            schema = {"allOf": [schema]}
        # Options of the library, which are not for clients.
        text = schema_text({key: value for key, value in schema.items() if key != "x-guidance"})
        options: dict[str, Any] = {"whitespace_pattern": _WHITESPACE}
        if not strict:
            options |= {"lenient": True, "coerce_one_of": True}
        try:
            source = LLMatcher.grammar_from_json_schema(text, overrides=options)  # type: ignore[arg-type]
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"this JSON schema cannot be read: {error}") from None
        return cls(source, "JSON schema")

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls.json_schema({"type": "object"})

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text that the whole pattern matches (Rust's regular expressions)."""
        return cls(LLMatcher.grammar_from_regex(check_text(pattern)), "regular expression")

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Grammar:
        """One of these texts."""
        options = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
        return cls(LLMatcher.grammar_from_lark(check_text(f"start: {options}")), "choice")

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A Lark grammar whose first rule is `start`, in llguidance's dialect."""
        return cls(LLMatcher.grammar_from_lark(check_text(text)))

    @classmethod
    def gbnf(cls, text: str) -> Grammar:
        """A grammar in llama.cpp's GBNF, whose first rule is `root`; or one in Lark.

        Raises:
            InvalidRequestError: it cannot be read.
        """
        check_text(text)
        try:
            return cls(llguidance.grammar_from("gbnf", text))
        except ValueError as error:
            raise InvalidRequestError(f"this grammar cannot be read: {error}") from None

    def after_text(self, marker: str) -> Grammar:
        """this grammar behind any text that ends with the first `marker`."""
        head = f"start: free @held\nfree[suffix={json.dumps(marker)}]: /(.|\\n)*/\n"
        inner = json.loads(self.source)["grammars"]
        first = {**inner[0], "name": "held"}
        grammars = [{"name": "outer", "lark_grammar": head}, first, *inner[1:]]
        return Grammar(json.dumps({"grammars": grammars}), self.noun)
