"""Whether to guess is a function of what was measured: each reason, and what looks cost."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_parallm.engine.guessing.decision import (
    LOOK_STEPS,
    MOST_TRIES,
    Decision,
    Promise,
    Reason,
    Snapshot,
    budget_after,
    decide,
    pays,
)

# Four rows whose plain step takes a second. A step of two guesses a row takes 1.5 s and gives
# 12 tokens, for which plain decoding needs 3 s.
GOOD = Snapshot(
    rows=4,
    willing=4,
    ceiling=4,
    plain_seconds=1.0,
    promise=Promise(length=2, seconds=1.5, tokens=12.0),
    is_measured=True,
    look_budget=0.0,
)
# The same guesses in a step of 5 s: a look of eight steps loses 16 s.
BAD = replace(GOOD, promise=Promise(length=2, seconds=5.0, tokens=12.0))

some_snapshots = st.builds(
    Snapshot,
    rows=st.integers(1, 32),
    willing=st.integers(0, 32),
    ceiling=st.integers(0, 4),
    plain_seconds=st.one_of(st.none(), st.floats(0.001, 1.0)),
    promise=st.one_of(
        st.none(),
        st.builds(Promise, st.integers(1, 4), st.floats(0.001, 3.0), st.floats(33.0, 160.0)),
    ),
    is_measured=st.booleans(),
    tries=st.integers(0, 2 * MOST_TRIES),
    catch_up_seconds=st.floats(0.0, 2.0),
    plain_run=st.integers(0, LOOK_STEPS),
    look_left=st.integers(0, LOOK_STEPS),
    look_budget=st.one_of(st.none(), st.floats(0.0, 50.0)),
)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (GOOD, Decision(2, Reason.PAYS)),
        (replace(GOOD, ceiling=0), Decision(0, Reason.OFF)),
        (replace(GOOD, willing=0), Decision(0, Reason.NOBODY_WANTS_IT)),
        (replace(GOOD, plain_seconds=None), Decision(0, Reason.UNMEASURED)),
        (replace(GOOD, promise=None), Decision(0, Reason.UNMEASURED)),
        (
            replace(GOOD, is_measured=False, tries=MOST_TRIES),
            Decision(0, Reason.NEVER_ALONE),
        ),
        (BAD, Decision(0, Reason.DOES_NOT_PAY)),
        (replace(BAD, look_left=3), Decision(2, Reason.LOOK)),
        (replace(BAD, look_budget=None), Decision(2, Reason.LOOK)),
        (replace(BAD, look_budget=16.5), Decision(2, Reason.LOOK)),
        (replace(BAD, look_budget=15.5), Decision(0, Reason.DOES_NOT_PAY)),
        (replace(BAD, look_budget=16.5, catch_up_seconds=1.0), Decision(0, Reason.DOES_NOT_PAY)),
        # Good, but as long as it was not measured the step is feared to take 2.5 s.
        (replace(GOOD, is_measured=False), Decision(2, Reason.LOOK)),
        # A plain step for what guessing does in half a second: eight of them lose 4 s.
        (replace(GOOD, look_budget=4.5), Decision(0, Reason.PLAIN_LOOK)),
        (replace(GOOD, look_budget=3.5), Decision(2, Reason.PAYS)),
    ],
)
def test_every_reason(now: Snapshot, expected: Decision) -> None:
    assert decide(now) == expected


def test_it_has_to_promise_two_percent_more() -> None:
    even = replace(GOOD, promise=Promise(length=2, seconds=2.95, tokens=12.0))
    assert not pays(even)
    assert pays(replace(GOOD, promise=Promise(length=2, seconds=2.9, tokens=12.0)))


def test_a_look_is_paid_for_and_steps_pay_in() -> None:
    after_plain_steps = replace(BAD, plain_run=8)
    assert budget_after(after_plain_steps, decide(after_plain_steps)) == pytest.approx(0.12)
    assert budget_after(GOOD, decide(GOOD)) == pytest.approx(0.015 * 1.5)
    rich = replace(BAD, look_budget=20.0)
    assert budget_after(rich, decide(rich)) == pytest.approx(4.0)
    first = replace(BAD, look_budget=None)
    assert budget_after(first, decide(first)) == 0.0
    going_on = replace(BAD, look_left=2, look_budget=1.0)
    assert budget_after(going_on, decide(going_on)) == 1.0


@given(now=some_snapshots)
def test_guesses_only_where_there_is_a_reason_and_never_on_credit(now: Snapshot) -> None:
    decision = decide(now)
    assert decision == decide(now)
    assert (decision.length > 0) == (decision.reason in (Reason.PAYS, Reason.LOOK))
    left = budget_after(now, decision)
    assert left is None or left >= -1e-9
