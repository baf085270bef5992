"""Masks of a step, against what the grammar takes token by token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.utils import load_tokenizer

from mlx_parallm.engine.grammar import Compiler, Constraint, Gate, Grammar
from mlx_parallm.engine.grammar.gate import Phase
from mlx_parallm.engine.grammar.masks import MaskFiller, Masks, Wanted
from mlx_parallm.models.sources.sources import BUNDLED, resolve
from tests.engine import mock
from tests.engine.grammar.words import allowed, tokens
from tests.waiting import PATIENCE_S

CLOSE, OPEN = mock.ASSISTANT, mock.USER
EVERY = set(range(mock.VOCAB))
GRAMMARS = [
    Grammar.json_object(),
    Grammar.regex("(ab|ba)*c?"),
    Grammar.choice(["yes", "no"]),
    None,
]
GATES = [
    None,
    Gate((CLOSE,)),
    Gate((CLOSE,), opener=OPEN),
    Gate((CLOSE,), may_end=True),
    Gate(tuple(tokens("ab")), budget=2),
    Gate((CLOSE,), opener=OPEN, budget=1),
]


def fill(*wanted: Wanted) -> Masks:
    filler = MaskFiller(mock.VOCAB, [mock.EOS])
    try:
        return filler.start(wanted).result(PATIENCE_S)
    finally:
        filler.close()


def taken_alone(constraint: Constraint) -> set[int]:
    """Tokens that may come next, by the gate's rules and the grammar's own mask."""
    state = constraint.gate
    if state is not None and state.must_say is not None:
        return {state.must_say}
    if state is not None and state.phase is Phase.FREE:
        return EVERY if state.gate.may_end else EVERY - {mock.EOS}
    if constraint.matcher is None:
        return EVERY
    mask = constraint.matcher.deep_copy().compute_bitmask()
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little")[: mock.VOCAB]
    found = {int(token) for token in np.nonzero(bits)[0]}
    return found if state is None or state.gate.opener is None else found | {state.gate.opener}


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_masks_allow_what_is_taken(compiler: Compiler, data: st.DataObject) -> None:
    """Along any guesses, through the gate, for rows side by side."""
    rows = []
    for _ in range(data.draw(st.integers(1, 3))):
        grammar, gate = data.draw(st.sampled_from(GRAMMARS)), data.draw(st.sampled_from(GATES))
        constraint = compiler.constraint(grammar, gate, param="x").result(PATIENCE_S)
        walk, guesses = constraint.copy(), []
        for _ in range(data.draw(st.integers(0, 5))):
            choices = sorted(taken_alone(walk) - {mock.EOS})
            if walk.done or not choices:
                break
            preferred = [t for t in choices if t in (CLOSE, OPEN, *tokens('{"ab'))]
            guesses.append(data.draw(st.sampled_from(preferred or choices)))
            walk.take(guesses[-1])
        rows.append((constraint, guesses))
    wanted, first = [], 10
    for constraint, guesses in rows:
        wanted.append(Wanted(constraint, first, guesses))
        first += len(guesses) + 1
    masks = fill(*wanted)
    assert masks.rows.tolist() == list(range(10, first))
    place = 0
    for constraint, guesses in rows:
        walk = constraint.copy()
        for guess in [*guesses, None]:
            if not walk.done:
                assert allowed(masks, place) == taken_alone(walk)
            place += 1
            if guess is not None:
                walk.take(guess)
        assert constraint.error is None


def test_guesses_that_were_wrong_leave_nothing_behind() -> None:
    """Two properties are followed by the same letters, but not by the same tokens."""
    tokenizer = load_tokenizer(resolve(BUNDLED))
    compiler = Compiler(tokenizer, len(tokenizer), [tokenizer.eos_token_id])
    inner = {"type": "object", "properties": {"of": {"type": "string"}}, "required": ["of"]}
    nothing = {"type": "object", "additionalProperties": False}
    schema = {"type": "object", "properties": {"none": nothing, "some": inner}}
    constraint = compiler.constraint(Grammar.json_schema(schema), param="x").result(PATIENCE_S)
    begin, guessed, said = (
        [int(token) for token in tokenizer.encode(text, add_special_tokens=False)]
        for text in ('{"', 'some":', 'none":')
    )
    filler = MaskFiller(len(tokenizer), [tokenizer.eos_token_id])
    for token in begin:
        constraint.take(token)
    fresh = constraint.copy()
    filler.fill([Wanted(constraint, 0, guessed)])
    for token in said:
        constraint.take(token)
        fresh.take(token)
    masks = filler.fill([Wanted(constraint, 0), Wanted(fresh, 1)])
    assert masks.words[0].tolist() == masks.words[1].tolist()
    filler.close()
    compiler.close()


def test_what_is_behind_a_wrong_guess_is_free(compiler: Compiler) -> None:
    constraint = compiler.constraint(Grammar.choice(["ab"]), param="x").result(PATIENCE_S)
    masks = fill(Wanted(constraint, 0, tokens("xb")))
    assert allowed(masks, 0) == set(tokens("a"))
    assert allowed(masks, 1) == allowed(masks, 2) == EVERY
    assert constraint.error is None


@pytest.mark.parametrize(("said", "ends"), [("a", False), ("", False), ("aaa", True)])
def test_ends_are_withheld_where_anything_else_is_allowed(
    compiler: Compiler, said: str, ends: bool
) -> None:
    constraint = compiler.constraint(Grammar.regex("a{1,3}b*"), param="x").result(PATIENCE_S)
    for token in tokens(said):
        constraint.take(token)
    masks = fill(Wanted(constraint, 0, [], ends=[mock.EOS, *tokens("b")], withheld=1))
    # Behind three only "b" or the end can come: nothing else is left, so they stay.
    assert (mock.EOS in allowed(masks, 0)) is ends


def test_a_grammar_without_a_next_token_is_an_error(compiler: Compiler) -> None:
    constraint = compiler.constraint(Grammar.choice(["a"]), param="x").result(PATIENCE_S)
    well = compiler.constraint(Grammar.choice(["a"]), param="x").result(PATIENCE_S)
    constraint.take(tokens("a")[0])
    assert constraint.done
    constraint.matcher.consume_token(tokens("b")[0])  # type: ignore[union-attr]
    masks = fill(Wanted(constraint, 0), Wanted(well, 1))
    assert constraint.error is not None
    assert allowed(masks, 0) == EVERY
    assert well.error is None
    assert allowed(masks, 1) == set(tokens("a"))


def test_masks_are_words_of_32_bits(compiler: Compiler) -> None:
    constraint = compiler.constraint(Grammar.json_object(), param="x").result(PATIENCE_S)
    masks = fill(Wanted(constraint, 3))
    assert masks.words.dtype == np.uint32
    assert masks.words.shape == (1, -(-mock.VOCAB // 32))
