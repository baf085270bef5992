"""A sequence's constraint: what it takes, when it is done, what has to come; and its gate."""

from __future__ import annotations

import pytest

from mlx_parallm.engine.grammar import Compiler, Constraint, Gate, Grammar
from tests.engine import mock
from tests.engine.grammar.words import tokens
from tests.waiting import PATIENCE_S

OPEN, CLOSE = mock.USER, mock.ASSISTANT  # special tokens: "<think>" and "</think>" here
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}},
    "required": ["name"],
    "additionalProperties": False,
}


def made(compiler: Compiler, grammar: Grammar | None, gate: Gate | None = None) -> Constraint:
    return compiler.constraint(grammar, gate, param="x").result(PATIENCE_S)


def say(constraint: Constraint, said: list[int]) -> Constraint:
    for token in said:
        constraint.take(token)
    return constraint


def test_it_is_done_with_the_last_token(compiler: Compiler) -> None:
    constraint = made(compiler, Grammar.json_schema(SCHEMA))
    say(constraint, tokens('{"name": "x"'))
    assert not constraint.done
    say(constraint, tokens("}"))
    assert constraint.done
    assert constraint.error is None


def test_an_end_token_ends_what_could_go_on(compiler: Compiler) -> None:
    constraint = say(made(compiler, Grammar.regex("a+")), tokens("aa"))
    assert not constraint.done
    say(constraint, [mock.EOS])
    assert constraint.done
    assert constraint.error is None


def test_a_token_that_is_not_allowed_is_an_error(compiler: Compiler) -> None:
    constraint = say(made(compiler, Grammar.regex("a+")), tokens("ab"))
    assert constraint.done
    assert constraint.error is not None


def test_copies_go_their_own_ways(compiler: Compiler) -> None:
    one = say(made(compiler, Grammar.regex("a(b|c)d")), tokens("a"))
    other = one.copy()
    say(one, tokens("bd"))
    assert one.done
    assert not other.done
    assert other.allowed(tokens("cd")) == 2


def test_what_has_to_come_is_known(compiler: Compiler) -> None:
    constraint = say(made(compiler, Grammar.json_schema(SCHEMA)), tokens('{"'))
    assert constraint.forced() == tokens('name"')


def test_guesses_are_tried_without_being_taken(compiler: Compiler) -> None:
    constraint = made(compiler, Grammar.json_schema(SCHEMA))
    assert constraint.allowed(tokens('{"name":1')) == len('{"name":')
    assert constraint.allowed(tokens("x")) == 0
    assert constraint.allowed(tokens('{"name": "x"}')) == len('{"name": "x"}')


def test_thinking_comes_before_structure(compiler: Compiler) -> None:
    constraint = made(compiler, Grammar.json_object(), Gate((CLOSE,)))
    say(constraint, tokens("so x {"))
    assert constraint.error is None
    assert not constraint.done
    assert constraint.allowed([*tokens("y"), CLOSE, *tokens("{x")]) == 3
    say(constraint, [CLOSE, *tokens("{}")])
    assert constraint.done
    assert constraint.error is None


@pytest.mark.parametrize("thinks", [True, False])
def test_thinking_that_the_model_may_begin(compiler: Compiler, thinks: bool) -> None:
    constraint = made(compiler, Grammar.json_object(), Gate((CLOSE,), opener=OPEN))
    thought = [OPEN, *tokens("hm"), CLOSE] if thinks else []
    answer = [*thought, *tokens("{}")]
    assert constraint.allowed([*answer, 9]) == len(answer)
    say(constraint, answer)
    assert constraint.done
    assert constraint.error is None


def test_a_marker_of_several_tokens(compiler: Compiler) -> None:
    constraint = made(compiler, Grammar.json_object(), Gate(tuple(tokens("</t>"))))
    say(constraint, tokens("a </</t>"))
    assert constraint.gate is None
    assert constraint.allowed(tokens("x")) == 0
    assert constraint.allowed(tokens("{")) == 1


def test_thinking_has_a_budget(compiler: Compiler) -> None:
    marker = tuple(tokens("</t>"))
    constraint = made(compiler, None, Gate(marker, budget=3))
    said = tokens("abc")
    say(constraint, said)
    for token in marker:
        assert constraint.forced() == [token]
        assert constraint.allowed([token ^ 1]) == 0
        say(constraint, [token])
    assert constraint.gate is None
    assert not constraint.holds
    assert not constraint.done


def test_an_end_token_may_leave_the_gate_shut(compiler: Compiler) -> None:
    constraint = made(compiler, Grammar.json_object(), Gate((CLOSE,), may_end=True))
    say(constraint, [*tokens("no call"), mock.EOS])
    assert constraint.error is None
