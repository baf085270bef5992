"""Probabilities of options of any number of tokens, against enumeration."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_parallm.server.decisions import confidence
from mlx_parallm.server.decisions.option_tree import OptionTree, probabilities
from mlx_parallm.server.decisions.question import MAX_OPTIONS, Option, Question

# Of three tokens each, so that none is the beginning of another.
some_options = st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=20, unique=True)


def next_logprob(prefix: tuple[int, ...], token: int) -> float:
    """A model of four tokens: what follows depends on all that stands before."""
    weights = [1 + hash((*prefix, t, 7)) % 97 for t in range(4)]
    return math.log(weights[token] / sum(weights))


@given(options=some_options)
def test_an_option_has_the_probability_of_its_tokens(options: list[tuple[int, ...]]) -> None:
    tree = OptionTree(options)
    found = {
        prefix: {token: next_logprob(prefix, token) for token in wanted}
        for prefix, wanted in tree.rows
    }
    wanted = [
        sum(next_logprob(tokens[:place], token) for place, token in enumerate(tokens))
        for tokens in options
    ]
    assert tree.logprobs(found) == pytest.approx(wanted, abs=1e-12)
    told = probabilities(tree.logprobs(found))
    assert math.fsum(told) == pytest.approx(1, abs=1e-12)
    total = sum(math.exp(value) for value in wanted)
    assert told == pytest.approx([math.exp(value) / total for value in wanted], abs=1e-12)


def test_rows_are_inner_nodes_and_the_root_comes_first() -> None:
    assert OptionTree([(1,), (2,), (3,)]).rows == [((), (1, 2, 3))]
    assert OptionTree([(1, 5), (1, 6), (2, 5)]).rows == [
        ((), (1, 2)),
        ((1,), (5, 6)),
        ((2,), (5,)),
    ]


@pytest.mark.parametrize("options", [[(1,), (1,)], [(1,), (1, 2)], [(1, 2, 3), (4,), (1, 2)]])
def test_options_that_cannot_be_told_apart(options: list[tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="option"):
        OptionTree(options)


@given(
    st.lists(
        st.one_of(st.floats(-1e4, 0), st.just(-float("inf"))), min_size=1, max_size=MAX_OPTIONS
    )
)
def test_probabilities_sum_to_one(logprobs: list[float]) -> None:
    found = probabilities(logprobs)
    assert math.fsum(found) == pytest.approx(1, abs=1e-9)
    assert all(0 <= p <= 1 for p in found)
    assert 0 <= confidence.of_choice(found) <= 1
    assert 0 <= confidence.of_score(found) <= 1
    assert -1e-9 <= confidence.mean_level(found) <= len(found) - 1 + 1e-9


@pytest.mark.parametrize(
    ("found", "choice", "score"),
    [
        ([1.0], 1.0, 1.0),
        ([0.5, 0.5], 0.0, 0.0),
        ([0.0, 1.0, 0.0], 1.0, 1.0),
        ([0.8, 0.15, 0.05], 0.7, 1 - (0.15 + 2 * 0.05) / (2 / 3)),
        ([0.1, 0.3, 0.6], 0.4, 0.25),
        ([0.25] * 4, 0.0, 0.0),
    ],
)
def test_confidence(found: list[float], choice: float, score: float) -> None:
    assert confidence.of_choice(found) == pytest.approx(choice)
    assert confidence.of_score(found) == pytest.approx(score)


@pytest.mark.parametrize("count", [2, 26, 27, 99, 100, 255])
def test_no_label_is_the_beginning_of_another(count: int) -> None:
    options = tuple(Option(f"o{place}") for place in range(count))
    labels = Question("q", "choice", "Which?", options).labels
    assert len(set(labels)) == count
    assert len({len(label) for label in labels}) == 1


def test_a_score_has_its_levels_as_labels() -> None:
    def asked(kind: Any, count: int) -> Question:
        return Question("q", kind, "How?", tuple(Option(f"o{i}") for i in range(count)))

    assert asked("score", 10).labels == tuple("0123456789")
    assert asked("yes_no", 2).labels == ("yes", "no")
