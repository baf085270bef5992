"""Which predictions a step computes, and for how long. No model here."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_parallm.engine.client import Client
from mlx_parallm.engine.networks.network_line import Planned
from mlx_parallm.engine.networks.prediction import Prediction
from mlx_parallm.engine.networks.step_cost import StepCost
from mlx_parallm.engine.plan import SchedulerConfig
from mlx_parallm.engine.ranks.events import Add
from mlx_parallm.engine.ranks.turn import Turn
from mlx_parallm.engine.ranks.wire import Reader, Writer
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.engine.sequence import FinishReason, SamplingParams, Sequence

GREEDY, MODEST = Client("greedy"), Client("modest")


def scheduler(gap_s: float = 0.02, **costs: float) -> ContinuousBatchScheduler:
    """One whose rows can wait for gap_s, with networks whose time steps take so long a row."""
    made = ContinuousBatchScheduler(SchedulerConfig(packs=True))
    made.networks.spare = lambda decoding: gap_s
    for name, seconds in costs.items():
        for rows in (1, 2, 4, 8, 16, 32, 64):
            made.networks.measured(name, rows, rows * seconds)
    return made


def prediction(name: str, steps: int = 1, rows: int = 1, client: Client | None = None) -> Sequence:
    numbers = [np.zeros((steps, 2), np.float32) for _ in range(rows)]
    sequence = Sequence.predicting(Prediction(name, numbers, cost=float(rows)))
    sequence.client = client
    return sequence


def end(run: ContinuousBatchScheduler, planned: Planned) -> list[Sequence]:
    """The engine's part: those that are through are finished."""
    ended = [s for s, _ in planned if s.num_pending <= 1]
    for sequence in ended:
        run.finish(sequence, FinishReason.LENGTH)
    return ended


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 60), st.integers(1, 9)), max_size=30),
    st.floats(0.002, 0.1),
    st.integers(0, 1),
)
def test_all_end_and_no_step_is_longer_than_rows_can_wait(
    asked: list[tuple[str, int, int]], gap_s: float, behind: int
) -> None:
    run = scheduler(gap_s, a=1e-4, b=3e-4)
    sequences = [prediction(*one) for one in asked]
    for sequence in sequences:
        run.add(sequence)
    steps = Counter[int]()
    ended: list[Sequence] = []
    while run.networks.has_work:
        planned, seconds = run.networks.plan(decoding=4, behind=behind)
        assert planned, "work, and nothing planned"
        steps.update({sequence.id: count for sequence, count in planned})
        if len(planned) > 1:
            rows = Counter[str]()
            for sequence, _ in planned:
                assert sequence.prediction is not None
                rows[sequence.prediction.network] += len(sequence.prediction.rows)
            each = rows["a"] * 1e-4 + rows["b"] * 3e-4
            longest = max(count for _, count in planned)
            # Between two powers of two the lower one's time is expected, or the higher one's.
            assert seconds <= gap_s / (1 + behind) * (1 + 1e-9)
            assert each * longest <= 2 * gap_s / (1 + behind)
        ended += end(run, planned)
    assert {s.id for s in ended} == {s.id for s in sequences}
    assert all(steps[s.id] == len(s.prompt) - 1 for s in sequences)
    assert run.num_waiting == 0 and not run.has_work


def test_a_network_of_unknown_cost_is_tried_alone() -> None:
    run = scheduler(a=1e-5)
    for name in ("new", "new", "a"):
        run.add(prediction(name, steps=40))
    planned, _ = run.networks.plan(decoding=1, behind=0)
    assert [(s.prediction.network, count) for s, count in planned if s.prediction] == [("new", 16)]
    run.networks.measured("new", 1, 1e-5)
    planned, _ = run.networks.plan(decoding=1, behind=0)
    assert len(planned) == 3


def test_the_client_that_was_served_least_goes_first_whatever_it_asked_for() -> None:
    run = scheduler(a=1.0)  # one row a step
    for _ in range(60):
        run.add(prediction("a", client=GREEDY))
    run.add(Sequence([1] * 30, SamplingParams(), client=MODEST))
    assert run.schedule().predictions[0][0].client is GREEDY
    for _ in range(2):
        run.add(prediction("a", client=MODEST))
    order = [run.networks.plan(1, 0)[0][0][0].client for _ in range(40)]
    # Its 30 prompt tokens count as well.
    assert order[:25] == [GREEDY] * 25
    assert order[25:].count(MODEST) == 2


def test_what_networks_take_is_taken_from_prompts() -> None:
    run = scheduler(gap_s=0.02, a=0.004)
    given_to_prompts: list[float] = []

    def budget(decoding: int, behind: int, besides: float) -> int:
        given_to_prompts.append(besides)
        return 8

    run.budget = budget
    run.add(Sequence([1] * 30, SamplingParams()))
    run.add(prediction("a", steps=2))
    plan = run.schedule()
    assert plan.predictions and plan.prefill
    assert given_to_prompts == [pytest.approx(0.008)]
    run.schedule()
    assert given_to_prompts[1] == 0


def test_who_has_left_is_not_planned() -> None:
    run = scheduler(a=1e-5)
    gone, stays = prediction("a"), prediction("a")
    run.add(gone)
    run.add(stays)
    run.finish(gone, FinishReason.ABORT)
    assert [s for s, _ in run.networks.plan(0, 0)[0]] == [stays]


def test_a_size_that_was_slow_once_is_tried_again() -> None:
    cost = StepCost()
    assert cost.seconds(3) is None
    cost.measured(1, 0.001)
    cost.measured(64, 10.0)
    assert cost.seconds(64) == pytest.approx(0.064)
    cost.measured(64, 0.002)
    assert cost.seconds(200) == pytest.approx(0.128)


def test_predictions_travel_to_other_ranks() -> None:
    sequence = prediction("a", steps=3, rows=2)
    turn = Reader(lambda grammar, gate: None).read(  # type: ignore[arg-type, return-value]
        Writer().write(Turn([Add([sequence])]))
    )
    (event,) = turn.events
    assert isinstance(event, Add) and event.sequences[0].prediction is not None
    assert [row.shape for row in event.sequences[0].prediction.rows] == [(3, 2)] * 2
