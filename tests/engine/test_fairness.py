"""Clients share the batch: none waits behind another one's long queue."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_parallm.engine.client import Client
from mlx_parallm.engine.plan import SchedulerConfig
from mlx_parallm.engine.sequence import Sequence, Status
from tests.engine.simulation import ENDED, Simulation, sequence

GREEDY, MODEST = Client("greedy"), Client("modest")


def simulation(batch: int = 8) -> Simulation:
    return Simulation(SchedulerConfig(max_batch_size=batch, prefill_chunk=64))


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


def test_one_request_does_not_wait_behind_five_hundred_of_another_client() -> None:
    alone = simulation()
    (only,) = crowd(alone, 1, MODEST)
    steps_alone = steps_to_first_token(alone, only)

    run = simulation()
    crowd(run, 500, GREEDY)
    for _ in range(30):
        run.step()
    (one,) = crowd(run, 1, MODEST)
    assert steps_to_first_token(run, one) <= 3 * steps_alone
    run.run(20_000)
    assert all(s.finish_reason in ENDED for s in run.added)


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
