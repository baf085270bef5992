"""The scheduler without a model: bounds, order, groups, preemption, blame."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mlx_parallm.engine.client import Client
from mlx_parallm.engine.plan import SchedulerConfig
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.engine.sequence import FinishReason, Sequence, Status
from tests.engine.simulation import ENDED, Simulation, sequence
from tests.waiting import PATIENCE_S


class Machine(RuleBasedStateMachine):
    """Random arrivals, groups, aborts and faults between random steps."""

    @initialize(
        batch=st.integers(1, 6),
        chunk=st.integers(1, 24),
        idle=st.integers(1, 64),
        kv=st.sampled_from([96, 128, 200, 1 << 30]),
        width=st.integers(1, 32),
    )
    def configure(self, batch: int, chunk: int, idle: int, kv: int, width: int) -> None:
        self.simulation = Simulation(
            SchedulerConfig(
                max_batch_size=batch,
                prefill_chunk=chunk,
                idle_prefill_tokens=idle,
                kv_tokens=kv,
                max_width=width,
            )
        )

    @rule(
        prompt=st.integers(1, 60),
        max_tokens=st.integers(0, 30),
        end=st.booleans(),
        min_tokens=st.integers(0, 8),
        priority=st.sampled_from([0, 0, 0, -1, 2]),
        client=st.sampled_from([None, None, Client("a"), Client("b", 3.0)]),
    )
    def add(
        self,
        prompt: int,
        max_tokens: int,
        end: bool,
        min_tokens: int,
        priority: int,
        client: Client | None,
    ) -> None:
        asked = {"min_tokens": min_tokens, "priority": priority, "client": client}
        self.simulation.add(sequence(prompt, max_tokens, end=end, **asked))

    @rule(prompt=st.integers(1, 40), size=st.integers(2, 5), max_tokens=st.integers(0, 12))
    def add_group(self, prompt: int, size: int, max_tokens: int) -> None:
        first = sequence(prompt, max_tokens)
        group = [
            Sequence(list(first.prompt), first.params, group=first.id, arrival=first.arrival)
            for _ in range(size)
        ]
        self.simulation.add(*group)

    @rule(prompt=st.integers(1, 30))
    def add_poison(self, prompt: int) -> None:
        poisoned = sequence(prompt, 5)
        self.simulation.poison.add(poisoned.id)
        self.simulation.add(poisoned)

    @precondition(lambda self: self.simulation.added)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.simulation.abort(data.draw(st.sampled_from(self.simulation.added)))

    @rule(count=st.integers(1, 12))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.simulation.step()

    @invariant()
    def counts_agree(self) -> None:
        added, scheduler = self.simulation.added, self.simulation.scheduler
        assert scheduler.num_waiting == sum(s.status is Status.WAITING for s in added)
        for one in added:
            assert (self.simulation.ends[one.id] == 1) == (one.status is Status.FINISHED)

    def teardown(self) -> None:
        if not hasattr(self, "simulation"):
            return
        simulation = self.simulation
        simulation.run()
        assert all(simulation.ends[s.id] == 1 for s in simulation.added)
        assert not simulation.rows
        assert simulation.scheduler.kv_tokens_used == 0
        assert simulation.scheduler.num_waiting == 0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=25)


def run(sequences: list[Sequence], **config: Any) -> Simulation:
    simulation = Simulation(SchedulerConfig(**config))
    simulation.add(*sequences)
    simulation.run()
    return simulation


def test_all_rows_advance_together() -> None:
    simulation = run([sequence(5, 10) for _ in range(8)], max_batch_size=8)
    assert simulation.batch_sizes.count(8) == 10
    assert sum(simulation.batch_sizes) == 80


def test_late_arrival_joins_the_running_batch() -> None:
    simulation = Simulation(SchedulerConfig())
    simulation.add(sequence(5, 20))
    for _ in range(5):
        simulation.step()
    late = sequence(5, 3)
    simulation.add(late)
    simulation.step()
    assert simulation.batch_sizes[-1] == 2
    simulation.run()
    assert late.finish_reason is FinishReason.LENGTH


def test_long_prompt_does_not_stop_running_rows() -> None:
    simulation = Simulation(SchedulerConfig(prefill_chunk=16))
    runner = sequence(2, 100)
    simulation.add(runner)
    for _ in range(3):
        simulation.step()
    simulation.add(sequence(400, 1))
    before = len(runner.output)
    for _ in range(20):
        simulation.step()
    assert len(runner.output) == before + 20


def test_short_prompts_pass_a_long_one() -> None:
    """The head of the line leaves half of the budget to those behind it."""
    simulation = Simulation(SchedulerConfig(idle_prefill_tokens=32, prefill_chunk=32))
    simulation.add(sequence(1000, 1), short := sequence(10, 1))
    for _ in range(3):
        simulation.step()
    assert short.status is Status.FINISHED


def test_long_prompt_is_not_starved_by_short_ones() -> None:
    simulation = Simulation(SchedulerConfig(max_batch_size=4, prefill_chunk=16))
    simulation.add(long := sequence(300, 1))
    for _ in range(60):
        simulation.add(sequence(12, 2))
        simulation.step()
    assert long.status is Status.FINISHED


def test_priority_goes_first_then_arrival() -> None:
    simulation = Simulation(SchedulerConfig(max_batch_size=1))
    order: list[Sequence] = []
    late = [sequence(3, 2, priority=p) for p in (1, 0, 1, 0, -5)]
    simulation.add(*late)
    while simulation.scheduler.has_work or simulation.in_flight:
        simulation.step()
        order += [s for s in late if s.status is Status.FINISHED and s not in order]
    assert order == [late[4], late[1], late[3], late[0], late[2]]


@pytest.mark.parametrize("kv", [1 << 30, 160])
def test_urgent_sequences_take_the_rows_of_others(kv: int) -> None:
    """What waits with a lower `priority` runs at once; who gave the row up answers the same."""
    simulation = Simulation(SchedulerConfig(max_batch_size=4, kv_tokens=kv))
    slow = [sequence(20, 60, priority=9) for _ in range(4)]
    simulation.add(*slow)
    for _ in range(10):
        simulation.step()
    urgent, equal = [sequence(30, 10) for _ in range(2)], sequence(3, 2, priority=9)
    simulation.add(*urgent, equal)
    ends: list[Sequence] = []
    while simulation.scheduler.has_work or simulation.in_flight:
        simulation.step()
        assert (equal.begun is None) or all(s.begun for s in urgent)
        ends += [s for s in (*slow, *urgent) if s.status is Status.FINISHED and s not in ends]
    assert set(ends[:2]) == set(urgent)
    assert {s.id for s in slow[2:]} <= simulation.recomputed
    assert not simulation.recomputed & {s.id for s in urgent}
    assert all(s.finish_reason is FinishReason.LENGTH for s in (*slow, *urgent))


def test_equal_priority_takes_no_row() -> None:
    simulation = Simulation(SchedulerConfig(max_batch_size=1))
    first = sequence(3, 8, priority=1)
    simulation.add(first)
    simulation.step()
    simulation.add(sequence(3, 8, priority=1))
    simulation.run()
    assert simulation.scheduler.preemptions == 0


def test_group_computes_its_prompt_once() -> None:
    first = sequence(40, 5)
    group = [Sequence(first.prompt, first.params, group=1, arrival=1.0) for _ in range(4)]
    simulation = run(group, max_batch_size=8, prefill_chunk=8)
    assert sum(simulation.prefilled.values()) == 39
    assert len(simulation.forked) == 3


@pytest.mark.parametrize("steps", range(1, 8))
def test_group_survives_its_leader(steps: int) -> None:
    first = sequence(30, 5)
    group = [Sequence(first.prompt, first.params, group=1, arrival=1.0) for _ in range(3)]
    simulation = Simulation(SchedulerConfig(idle_prefill_tokens=8))
    simulation.add(*group)
    for _ in range(steps):
        simulation.step()
    simulation.abort(group[0])
    simulation.run()
    assert [s.finish_reason in ENDED for s in group[1:]] == [True, True]


def test_preempted_sequences_come_back() -> None:
    sequences = [sequence(30, 40) for _ in range(4)]
    simulation = run(sequences, kv_tokens=160)
    assert simulation.scheduler.preemptions > 0
    assert all(s.finish_reason is FinishReason.LENGTH for s in sequences)
    assert sequences[0].id not in simulation.recomputed, "the oldest is never preempted"


def test_one_sequence_may_fill_the_whole_memory() -> None:
    scheduler = ContinuousBatchScheduler(SchedulerConfig(kv_tokens=64))
    assert scheduler.fits(sequence(40, 24))
    assert not scheduler.fits(sequence(40, 25))
    simulation = run([sequence(40, 24), sequence(40, 24)], kv_tokens=64)
    assert all(s.finish_reason is FinishReason.LENGTH for s in simulation.added)


def test_max_tokens_zero_only_computes_the_prompt() -> None:
    simulation = run([sequence(50, 0), sequence(1, 0)], idle_prefill_tokens=8)
    assert [s.output for s in simulation.added] == [[], []]
    assert [s.finish_reason for s in simulation.added] == [FinishReason.LENGTH] * 2


def test_min_tokens_hold_back_end_tokens() -> None:
    sequences = [sequence(3, 40, end=True, min_tokens=m) for m in (0, 1, 5, 30)]
    run(sequences)  # the simulation compares outputs with `expected_output`
    assert any(s.finish_reason is FinishReason.STOP for s in sequences)


@pytest.mark.parametrize("place", range(5))
def test_only_the_sequence_at_fault_fails(place: int) -> None:
    sequences = [sequence(6, 12) for _ in range(5)]
    simulation = Simulation(SchedulerConfig())
    simulation.poison.add(sequences[place].id)
    simulation.add(*sequences)
    simulation.run()
    failed = [s for s in sequences if s.finish_reason is FinishReason.ERROR]
    assert failed == [sequences[place]]
    assert simulation.faults <= 3, "together, beside a row that is well, and alone"


def test_a_newcomer_at_fault_is_not_blamed_on_a_suspect() -> None:
    """A second poisoned request joins while those of the first fault are being tried."""
    simulation = Simulation(SchedulerConfig(prefill_chunk=4, idle_prefill_tokens=4))
    well = [sequence(20, 6) for _ in range(3)]
    poisoned = [sequence(6, 6, priority=p) for p in (1, -1, -1)]
    simulation.poison |= {s.id for s in poisoned}
    simulation.add(*well, poisoned[0])
    for steps in (3, 2):
        for _ in range(steps):
            simulation.step()
        simulation.add(poisoned[-1 if steps == 3 else 1])
    simulation.run()
    assert all(s.finish_reason is FinishReason.LENGTH for s in well)
    assert all(s.finish_reason is FinishReason.ERROR for s in poisoned)


def test_the_scheduler_needs_no_mlx() -> None:
    code = (
        "import sys, mlx_parallm.engine.scheduler\n"
        "sys.exit(any(name == 'mlx' or name.startswith('mlx.') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_S).returncode == 0
