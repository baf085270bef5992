"""What is compiled, what is refused, and how fast."""

from __future__ import annotations

import time
from typing import Any

import pytest

from mlx_parallm.engine.grammar import Compiler, Grammar
from mlx_parallm.engine.grammar.limits import MAX_BYTES, MAX_DEPTH, MAX_PROPERTIES
from mlx_parallm.errors import InvalidRequestError, UnsupportedError
from tests.engine import mock
from tests.engine.grammar.words import tokens
from tests.waiting import PATIENCE_S

# Takes minutes: overlaps of each pair of patterns.
SLOW = {"type": "object", "patternProperties": {f"^{i}a.*b": {} for i in range(900)}}


def accepts(compiler: Compiler, grammar: Grammar, text: str) -> bool:
    """Whether the grammar is done, or may be, with this text."""
    constraint = compiler.constraint(grammar, param="x").result(PATIENCE_S)
    assert constraint.matcher is not None
    for token in tokens(text):
        constraint.take(token)
    return constraint.error is None and constraint.matcher.is_accepting()


@pytest.mark.parametrize(
    ("grammar", "right", "wrong"),
    [
        (Grammar.json_object(), '{"a": [1, null]}', "[1]"),
        (Grammar.json_schema({"type": "integer"}), "12", "1.5"),
        (Grammar.json_schema(True), '"é"', "{"),
        (Grammar.regex("[0-9]{2}"), "12", "123"),
        (Grammar.choice(['say "yes"', "nö\n"]), "nö\n", "no"),
        (Grammar.lark('start: "a"+ "b"'), "aab", "ba"),
        (Grammar.gbnf('root ::= [0-9]+ ("kg" | "g")'), "12kg", "12 kg"),
        (Grammar.json_object().after_text("</think>"), "so {} </think>{}", "{}"),
    ],
)
def test_each_kind_of_grammar(compiler: Compiler, grammar: Grammar, right: str, wrong: str) -> None:
    assert accepts(compiler, grammar, right)
    assert not accepts(compiler, grammar, wrong)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "object", "properties": {"a": {"not": {}}}}, "not"),
        ({"if": {}, "then": {}}, "if"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "format": "postcode"}, "postcode"),
        ({"type": "string", "pattern": "(a"}, "unclosed group"),
        ({"$ref": "#/$defs/none"}, "/$defs/none"),
        ({"type": "integer", "minimum": 3, "maximum": 1}, "minimum"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 2}]}, "oneOf"),
    ],
)
def test_what_cannot_be_enforced_is_named(
    compiler: Compiler, schema: dict[str, Any], named: str
) -> None:
    future = compiler.constraint(Grammar.json_schema(schema), param="response_format")
    with pytest.raises(InvalidRequestError, match="cannot be enforced") as caught:
        future.result(PATIENCE_S)
    assert named in caught.value.message
    assert caught.value.param == "response_format"


def test_a_lenient_schema_keeps_what_can_be_enforced(compiler: Compiler) -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"type": "integer"}}
    grammar = Grammar.json_schema(schema, strict=False)
    assert accepts(compiler, grammar, "[1, 1]")
    assert not accepts(compiler, grammar, '["a"]')


@pytest.mark.parametrize("text", ["start: (", "root ::= (", "\ud800"])
def test_a_grammar_that_cannot_be_read(compiler: Compiler, text: str) -> None:
    with pytest.raises(InvalidRequestError):
        compiler.constraint(Grammar.gbnf(text), param="grammar").result(PATIENCE_S)


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (nested(MAX_DEPTH), "nested too deeply"),
        (nested(100_000), "nested too deeply"),
        ({"properties": {f"p{i}": {} for i in range(MAX_PROPERTIES + 1)}}, "properties"),
        ({"anyOf": [{"multipleOf": 101}, {"multipleOf": 103}]}, "multipleOf"),
        ({"description": "x" * MAX_BYTES}, "bytes"),
        ({"description": "\ud800"}, "surrogate"),
    ],
)
def test_schemas_have_limits(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        Grammar.json_schema(schema)


def test_a_clients_options_of_the_library_are_ignored(compiler: Compiler) -> None:
    schema = {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}}
    with pytest.raises(InvalidRequestError, match="uniqueItems"):
        compiler.constraint(Grammar.json_schema(schema), param="x").result(PATIENCE_S)


def test_white_space_ends(compiler: Compiler) -> None:
    assert accepts(compiler, Grammar.json_object(), "{" + " " * 32 + "}")
    assert not accepts(compiler, Grammar.json_object(), "{" + " " * 33 + "}")


def test_what_is_too_expensive_is_refused_and_remembered(compiler: Compiler) -> None:
    with pytest.raises(InvalidRequestError, match="too expensive"):
        compiler.constraint(Grammar.json_schema(SLOW), param="x").result(PATIENCE_S)
    again = compiler.constraint(Grammar.json_schema(SLOW), param="x")
    assert again.done()
    with pytest.raises(InvalidRequestError, match="too expensive"):
        again.result()


def test_a_grammar_that_was_too_expensive_leaves_nothing_behind(compiler: Compiler) -> None:
    for place in range(3):
        hostile = Grammar.json_schema({**SLOW, "title": str(place)})
        with pytest.raises(InvalidRequestError, match=r"too expensive.*'patternProperties'"):
            compiler.constraint(hostile, param="x").result(PATIENCE_S)
        assert accepts(compiler, Grammar.choice([f"well {place}"]), f"well {place}")


def test_special_tokens_may_be_named(compiler: Compiler) -> None:
    for start in (f"<[{mock.USER}]>", "<|user|>"):
        grammar = Grammar.lark(f'start: {start} "a"')
        constraint = compiler.constraint(grammar, param="x").result(PATIENCE_S)
        assert constraint.allowed([mock.USER, *tokens("ab")]) == 2
        assert constraint.allowed(tokens("<|use")) == 0


def test_an_answer_that_comes_to_a_grammars_limits_does_not_spoil_it(compiler: Compiler) -> None:
    """Its first mask is cheap, so that it is admitted; the one behind "x" is not."""
    grammar = Grammar.lark('start: "y" | "x" MANY\nMANY: /((((a{100}){100}){100}){100})/')
    first = compiler.constraint(grammar, param="x").result(PATIENCE_S)
    assert first.matcher is not None
    first.take(tokens("x")[0])
    while not first.matcher.is_error():
        first.matcher.compute_bitmask()
        first.take(tokens("a")[0])
    assert accepts(compiler, grammar, "y")


def test_several_who_wait_for_the_same_grammar(compiler: Compiler) -> None:
    grammar = Grammar.regex("(wait|for|me){1,50}")
    futures = [compiler.constraint(grammar, param="x") for _ in range(20)]
    made = [future.result(PATIENCE_S) for future in futures]
    assert len({id(one.matcher) for one in made}) == 20


def test_a_grammar_seen_before_is_there_at_once(compiler: Compiler) -> None:
    schema = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(300)}}
    compiler.constraint(Grammar.json_schema(schema), param="x").result(PATIENCE_S)
    assert compiler.constraint(Grammar.json_schema(schema), param="x").done()


def test_a_tokenizer_that_does_not_serve() -> None:
    other = Compiler(object(), 10, [0])
    with pytest.raises(UnsupportedError):
        other.constraint(Grammar.json_object(), param="x").result(PATIENCE_S)
    other.close()


def test_other_threads_run_while_a_grammar_is_compiled(compiler: Compiler) -> None:
    hostile = Grammar.json_schema({**SLOW, "title": "again"})
    future = compiler.constraint(hostile, param="x")
    turns = 0
    while not future.done():
        time.sleep(0.001)
        turns += 1
    assert turns > 2  # one, where the compiler keeps all others out
    with pytest.raises(InvalidRequestError):
        future.result()


def test_the_vocabulary_may_be_padded() -> None:
    padded = Compiler(mock.byte_tokenizer(), mock.VOCAB + 77, [mock.EOS])
    constraint = padded.constraint(Grammar.json_schema(True), param="x").result(PATIENCE_S)
    assert constraint.matcher is not None
    bits = constraint.matcher.compute_bitmask()
    assert len(bits) * 8 >= mock.VOCAB + 77
    beyond = int.from_bytes(bits, "little") >> mock.VOCAB
    assert beyond == 0
    padded.close()
