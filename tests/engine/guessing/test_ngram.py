"""The NgramDrafter: what it guesses from, and what it believes."""

from __future__ import annotations

import pytest

from mlx_parallm.engine.guessing.ngram import (
    CONTEXTS,
    Beliefs,
    Context,
    NgramDrafter,
    OwnNgrams,
    SharedNgrams,
)
from mlx_parallm.engine.sequence import Sequence
from tests.engine.driver import greedy


def guesses(drafter: NgramDrafter, sequence: Sequence, most: int = 4) -> list[int]:
    """The guesses for one sequence."""
    proposal = drafter.propose([sequence], most)
    return [int(token) for token in proposal.guesses[0, : proposal.counts[0]]]


def written(drafter: NgramDrafter, prompt: list[int], output: list[int]) -> Sequence:
    """A sequence that wrote this while guesses were asked for, and ended."""
    sequence = greedy(prompt)
    drafter.observe([sequence], guessing=True)
    sequence.output = output
    drafter.forget(sequence)
    return sequence


def test_own_ngrams_are_those_that_occurred_last() -> None:
    own = OwnNgrams([1, 2, 3, 9, 1, 2, 3, 8, 1, 2, 3])
    pairs = own.ends[CONTEXTS.index(Context(False, 2))]
    assert own.tokens[pairs[2, 3]] == 8
    own.extend([5, 2, 3])
    own.extend([5, 2, 3, 7])
    assert own.tokens[pairs[2, 3]] == 7
    assert (7, 7) not in pairs


def test_a_sequence_is_guessed_to_repeat_itself() -> None:
    assert guesses(NgramDrafter(), greedy([1, 2, 3, 9, 8, 1, 2, 3]))[:2] == [9, 8]


def test_what_a_sequence_wrote_is_known_at_once() -> None:
    drafter, sequence = NgramDrafter(), greedy([1, 2, 3])
    assert guesses(drafter, sequence) == []
    sequence.output = [4, 5, 1, 2]
    assert drafter.lag([sequence]) == 4
    assert guesses(drafter, sequence)[:2] == [3, 4]
    assert drafter.lag([sequence]) == 0


def test_what_others_wrote_is_guessed() -> None:
    drafter, answer = NgramDrafter(), [5, 6, 7, 8, 9, 5, 4, 3]
    one = greedy([1, 2, 30, 31, 32])
    drafter.propose([one], 4)
    one.output = answer
    drafter.observe([one], guessing=True)
    other = greedy([9, 9, 30, 31, 32])
    proposal = drafter.propose([other], 4)
    assert proposal.guesses[0, : proposal.counts[0]].tolist() == answer[: proposal.counts[0]]
    assert proposal.counts[0] >= 2
    assert proposal.odds is not None
    odds = proposal.odds[0, : proposal.counts[0]].tolist()
    assert odds == sorted(odds, reverse=True)


def test_the_end_of_an_answer_is_learned() -> None:
    drafter = NgramDrafter()
    written(drafter, [1, 2], [50, 51, 52, 53])
    other = greedy([3, 4])
    other.output = [50, 51]
    assert guesses(drafter, other)[:2] == [52, 53]


def test_a_new_name_in_a_known_phrase_is_no_hindrance() -> None:
    """The context with the newest tokens left out: 'the code of X' goes on like that of Y."""
    drafter = NgramDrafter()
    for name in ([60, 61], [62, 63], [64, 65]):
        written(drafter, [1], [50, 51, 52, *name, 53, 54])
    other = greedy([2])
    other.output = [50, 51, 52, 70, 71]
    assert guesses(drafter, other)[:1] == [53]


def test_a_book_that_is_wrong_is_not_believed_again() -> None:
    drafter, sequence = NgramDrafter(), greedy([1, 2, 3, 4, 1, 2, 3])
    assert guesses(drafter, sequence)
    for _ in range(100):
        proposal = drafter.propose([sequence], 4)
        drafter.learn(proposal, proposal.counts.tolist(), [0])
    assert not guesses(drafter, sequence)


def test_it_learns_where_nothing_is_guessed() -> None:
    drafter = NgramDrafter()
    for start in range(100, 260):
        sequence = greedy([start])
        sequence.output = [50, 51, 52, 53, start + 500, 54]
        drafter.observe([sequence], guessing=False)
        drafter.forget(sequence)
    other = greedy([9])
    other.output = [50]
    proposal = drafter.propose([other], 4)
    assert proposal.guesses[0, :3].tolist() == [51, 52, 53]
    assert proposal.odds is not None and proposal.odds[0, 2] > 0.8


def test_of_a_long_output_the_newest_tokens_are_read() -> None:
    """Reading all of it would hold the other rows up."""
    drafter, sequence = NgramDrafter(), greedy([1])
    sequence.output = list(range(10, 1010))
    drafter.observe([sequence], guessing=True)
    ones = drafter._shared.tables[CONTEXTS.index(Context(True, 1))]
    assert len(ones) == 64
    assert (1008,) in ones


def test_only_some_are_read_where_nothing_is_guessed() -> None:
    drafter = NgramDrafter()
    sequences = [greedy([place]) for place in range(64)]
    for sequence in sequences:
        sequence.output = [7]
    drafter.observe(sequences, guessing=False)
    assert len(drafter._read) == 8
    drafter.observe(sequences, guessing=True)
    assert len(drafter._read) == 64


def test_a_token_that_is_guessed_wrongly_does_not_discredit_others() -> None:
    beliefs = Beliefs(memory=100)
    for _ in range(20):
        beliefs.learn(0, 7, right=False)
        beliefs.learn(0, 8, right=True)
    assert beliefs.of(0, 7) < 0.1 < 0.9 < beliefs.of(0, 8)
    assert 0.3 < beliefs.of(0, 9) < 0.9  # what is not known is believed like its kind


def test_beliefs_forget_the_oldest() -> None:
    beliefs = Beliefs(memory=10)
    for token in range(100):
        beliefs.learn(0, token, right=True)
    assert len(beliefs._tokens) == 10
    assert beliefs.of(0, 99) == pytest.approx(beliefs._tokens[0, 99].chance)


def test_shared_ngrams_forget_the_oldest() -> None:
    shared = SharedNgrams(memory=60)
    shared.extend(list(range(100)), 0)
    assert len(shared) == 60
    triples = shared.tables[CONTEXTS.index(Context(True, 4))]
    assert triples[95, 96, 97, 98].token == 99
    assert (10, 11, 12, 13) not in triples


def test_a_drafter_forgets_those_that_left() -> None:
    drafter = NgramDrafter()
    one, other = greedy([1, 2, 1, 2]), greedy([3, 4, 3, 4])
    drafter.propose([one, other], 2)
    drafter.forget(one)
    drafter.forget(one)
    drafter.propose([other], 2)
    assert list(drafter._own) == [other.id]
    assert not drafter._read
