"""Clients share the batch: none waits behind another one's long queue."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.engine.client import Client
from mlx_parallm.engine.plan import SchedulerConfig
from mlx_parallm.engine.sequence import Sequence, Status
from tests.engine.simulation import ENDED, Simulation, sequence

GREEDY, MODEST = Client("greedy"), Client("modest")


def simulation(batch: int = 8, packs: bool = True) -> Simulation:
    return Simulation(SchedulerConfig(max_batch_size=batch, prefill_chunk=64, packs=packs))


def crowd(run: Simulation, count: int, client: Client, **fields: int) -> list[Sequence]:
    many = [sequence(fields.get("prompt", 20), fields.get("tokens", 40)) for _ in range(count)]
    for one in many:
        one.client = client
    run.add(*many)
    return many


def steps_to_first_token(run: Simulation, one: Sequence) -> int:
    began = run.steps
    while not one.output:
        run.step()
    return run.steps - began


def first_token_alone(prompt: int) -> int:
    run = simulation()
    (only,) = crowd(run, 1, MODEST, prompt=prompt)
    return steps_to_first_token(run, only)


@pytest.mark.parametrize("prompt", [1, 8, 64])
def test_one_request_is_in_the_next_step_and_that_step_is_as_short_as_alone(prompt: int) -> None:
    run = simulation()
    crowd(run, 500, GREEDY)
    for _ in range(4):
        for _ in range(30):
            run.step()
        (one,) = crowd(run, 1, MODEST, prompt=prompt)
        run.step()
        plan = run.in_flight
        assert plan is not None and plan.decode == [one]
        assert [(s, count) for s, count in plan.prefill] == [(one, prompt - 1)] * (prompt > 1)
        assert steps_to_first_token(run, one) + 1 == first_token_alone(prompt)
        while one.status is not Status.FINISHED:
            run.step()
            assert run.in_flight is None or len(run.in_flight.decode) > 1  # and then all go on
    run.run(20_000)
    assert all(s.finish_reason in ENDED for s in run.added)


def test_a_long_prompt_is_not_interrupted_by_those_of_a_client_that_is_served() -> None:
    run = simulation()
    crowd(run, 500, GREEDY)
    for _ in range(30):
        run.step()
    (one,) = crowd(run, 1, MODEST, prompt=400)
    steps = 0
    while one.num_computed < 399:
        run.step()
        plan, steps = run.in_flight, steps + 1
        assert plan is not None and [s for s, _ in plan.prefill] == [one]
        assert plan.decode  # the others write on meanwhile
    assert steps == 7  # of 64 tokens


def test_newcomers_in_every_step_stop_nobody() -> None:
    run = simulation(batch=4)
    crowd(run, 40, GREEDY)
    for _ in range(10):
        run.step()
    before = sum(len(s.output) for s in run.added)
    others = [Client(f"client {place}") for place in range(40)]
    for client in others:
        crowd(run, 1, client, prompt=4, tokens=1)
        run.step()
    later = sum(len(s.output) for s in run.added if s.client == GREEDY) - before
    assert later > 40  # of the 4 rows x 40 steps that it has alone
    run.run(20_000)


def test_models_that_are_not_packed_leave_no_row_out() -> None:
    run = simulation(packs=False)
    crowd(run, 500, GREEDY)
    for _ in range(30):
        run.step()
    (one,) = crowd(run, 1, MODEST)
    run.step()
    assert run.in_flight is not None and len(run.in_flight.decode) == 8
    assert one in run.in_flight.decode


def test_time_alone_is_not_held_against_a_client() -> None:
    run = simulation(batch=2)
    crowd(run, 4, MODEST, prompt=60, tokens=60)
    run.run()
    crowd(run, 100, GREEDY)
    for _ in range(5):
        run.step()
    (one,) = crowd(run, 1, MODEST)
    assert steps_to_first_token(run, one) <= 3


def test_without_clients_it_is_first_come_first_served() -> None:
    run = simulation(batch=2)
    many = [sequence(4, 6) for _ in range(6)]
    run.add(*many)
    ended: list[int] = []
    while run.scheduler.has_work or run.in_flight is not None:
        run.step()
        ended += [s.id for s in many if s.status is Status.FINISHED and s.id not in ended]
    assert ended == [s.id for s in many] and run.scheduler.preemptions == 0


def test_a_client_of_three_times_the_weight_gets_three_times_the_tokens() -> None:
    run = simulation(batch=4)
    heavy = Client("heavy", 3.0)
    crowd(run, 200, heavy, tokens=12)
    crowd(run, 200, MODEST, tokens=12)
    for _ in range(300):
        run.step()
    served = Counter[str]()
    for one in run.added:
        assert one.client is not None
        served[one.client.name] += len(one.output)
    assert 2.4 < served["heavy"] / served["modest"] < 3.6


def test_a_pause_is_not_owed_to_a_client() -> None:
    run = simulation(batch=4)
    crowd(run, 100, GREEDY, tokens=10)
    for _ in range(100):
        run.step()
    crowd(run, 100, MODEST, tokens=10)
    before = sum(len(s.output) for s in run.added if s.client == GREEDY)
    for _ in range(100):
        run.step()
    later = sum(len(s.output) for s in run.added if s.client == GREEDY) - before
    assert later > 100  # it still gets about half of the 400


def test_a_low_priority_number_passes_a_clients_own_requests_only() -> None:
    run = simulation(batch=1)
    first = sequence(4, 8)
    pushy = [sequence(4, 8, priority=-100) for _ in range(3)]
    first.client = MODEST
    for one in pushy:
        one.client = GREEDY
    run.add(first, *pushy)
    run.step()
    run.step()
    assert first in run.scheduler.running
    run.run()
    assert run.scheduler.preemptions == 0


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from([GREEDY, MODEST, None]), st.integers(1, 20)), max_size=40),
    st.integers(1, 5),
)
def test_everybody_is_served_whoever_asks(asked: list[tuple[Client, int]], batch: int) -> None:
    """The simulation checks each answer against that of its run alone."""
    run = simulation(batch)
    for client, tokens in asked:
        crowd(run, 1, client, tokens=tokens)
        run.step()
    run.run(20_000)
    assert all(s.finish_reason in ENDED for s in run.added)
