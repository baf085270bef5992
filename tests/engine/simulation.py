"""The engine's loop around a scheduler, without a model: rows are counters.

Every plan is checked against the scheduler's promises while it is carried out.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from mlx_parallm.cache.length_class import capacity_for
from mlx_parallm.engine.plan import Plan, SchedulerConfig
from mlx_parallm.engine.scheduler import BLOCK_TOKENS, ContinuousBatchScheduler
from mlx_parallm.engine.sequence import FinishReason, SamplingParams, Sequence, Status

END = 7  # an end token
ENDED = (FinishReason.STOP, FinishReason.LENGTH)


def next_token(sequence: Sequence, position: int) -> int:
    """What the imagined model says: some sequences end early, most do not."""
    return (sum(sequence.prompt) * 31 + position * 17 + 3) % 23


def expected_output(sequence: Sequence) -> list[int]:
    """All tokens that a sequence gets when nothing goes wrong."""
    params = sequence.params
    tokens: list[int] = []
    while len(tokens) < params.max_tokens:
        tokens.append(next_token(sequence, len(tokens)))
        if tokens[-1] in params.end_token_ids and len(tokens) >= params.min_tokens:
            break
    return tokens


class StepFailure(Exception):
    """The imagined forward failed."""


class Simulation:
    """Launches a plan before it reads the one before, as the engine does.

    Args:
        poison: ids of sequences whose every forward fails.
    """

    def __init__(self, config: SchedulerConfig) -> None:
        self.scheduler = ContinuousBatchScheduler(config)
        self.poison: set[int] = set()
        self.added: list[Sequence] = []
        self.rows: dict[Sequence, int] = {}
        self.ends: Counter[int] = Counter()
        self.prefilled: Counter[int] = Counter()
        self.recomputed: set[int] = set()  # preempted or restarted
        self.forked: set[int] = set()
        self.in_flight: Plan | None = None
        self.steps = 0
        self.faults = 0
        self.batch_sizes: list[int] = []

    @property
    def config(self) -> SchedulerConfig:
        return self.scheduler.config

    def add(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            assert self.scheduler.fits(sequence)
            self.added.append(sequence)
            self.scheduler.add(sequence)

    def abort(self, sequence: Sequence) -> None:
        if sequence.status is not Status.FINISHED:
            self._finish(sequence, FinishReason.ABORT)

    def run(self, limit: int = 3_000) -> None:
        """Step until nothing is left to do."""
        while self.scheduler.has_work or self.in_flight is not None:
            self.step()
            limit -= 1
            assert limit > 0, "the scheduler makes no progress"

    def step(self) -> None:
        self.steps += 1
        idle = self.in_flight is None and self.scheduler.has_work
        plan = self.scheduler.schedule()
        # A loop that has work and gets nothing to do would spin for ever.
        assert not (idle and plan.empty), "work, and nothing planned"
        launched, self.in_flight = self.in_flight, None
        try:
            self._launch(plan)
        except StepFailure:
            if launched is not None:
                self._collect(launched)
            self._recover()
            return
        self.scheduler.launched(plan)
        self._check_bounds(plan)
        if launched is not None:
            self._collect(launched)
        self.in_flight = None if plan.empty else plan

    # A plan

    def _launch(self, plan: Plan) -> None:
        for sequence in plan.release:
            if self.rows.pop(sequence, None) is not None and sequence.status is Status.WAITING:
                self.recomputed.add(sequence.id)
        self._check_order(plan)
        for sequence in plan.admit:
            assert sequence not in self.rows
            self.rows[sequence] = 0
            self.prefilled[sequence.id] = 0
        for sequence, count in plan.prefill:
            assert 0 < count <= self.config.max_width
            self.rows[sequence] += count
            self.prefilled[sequence.id] += count
        for sequence, leader in plan.forks:
            assert sequence not in self.rows and sequence.prompt == leader.prompt
            assert self.rows[leader] == len(leader.prompt) - 1
            self.rows[sequence] = self.rows[leader]
            self.forked.add(sequence.id)
        for sequence in plan.decode:
            assert self.rows[sequence] == sequence.num_tokens + sequence.in_flight - 1
            assert sequence.num_sampled < sequence.params.max_tokens
            self.rows[sequence] += 1
        working = [*plan.decode, *(s for s, _ in plan.prefill), *plan.admit, *plan.complete]
        assert all(s.status in (Status.RUNNING, Status.PREFILL) for s in working)
        if any(s.id in self.poison for s in working):
            raise StepFailure

    def _collect(self, plan: Plan) -> None:
        for sequence in plan.complete:
            if sequence.status is not Status.FINISHED:
                self._finish(sequence, FinishReason.LENGTH)
        for sequence in plan.decode:
            alive = sequence.status is not Status.FINISHED
            token = next_token(sequence, len(sequence.output))
            taken = self.scheduler.update(sequence, [token])
            assert taken == ([token] if alive else [])
            if alive and sequence.status is Status.FINISHED:
                self._ended(sequence)

    def _recover(self) -> None:
        self.faults += 1
        self.rows.clear()
        self.recomputed.update(s.id for s in self.scheduler.running)
        for sequence in self.scheduler.suspect_all():
            self._finish(sequence, FinishReason.ERROR)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.finish(sequence, reason)
        self._ended(sequence)

    # What a scheduler promises

    def _ended(self, sequence: Sequence) -> None:
        self.ends[sequence.id] += 1
        assert self.ends[sequence.id] == 1
        reason = sequence.finish_reason
        assert (reason is FinishReason.ERROR) <= (sequence.id in self.poison), "blamed wrongly"
        if reason not in ENDED:
            return
        assert sequence.output == expected_output(sequence)
        by_end = bool(sequence.output) and sequence.output[-1] in sequence.params.end_token_ids
        assert (reason is FinishReason.STOP) <= by_end
        if sequence.id not in self.recomputed | self.forked:
            assert self.prefilled[sequence.id] == len(sequence.prompt) - 1

    def _check_bounds(self, plan: Plan) -> None:
        scheduler, config = self.scheduler, self.config
        self.batch_sizes.append(len(plan.decode))
        assert set(self.rows) == set(scheduler.running)
        assert len(self.rows) <= config.max_batch_size
        for sequence, computed in self.rows.items():
            assert computed == sequence.num_computed
        if len(self.rows) > 1 and config.packs:
            assert sum(map(capacity_for, self.rows.values())) <= config.kv_tokens
        elif len(self.rows) > 1:
            longest = -(-max(self.rows.values()) // BLOCK_TOKENS) * BLOCK_TOKENS
            assert len(self.rows) * longest <= config.kv_tokens
        joined = {s.id for s, _ in plan.prefill} | {s.id for s, _ in plan.forks}
        joined |= {s.id for s in plan.admit}
        decoding = sum(s.id not in joined for s in plan.decode)
        idle = max(config.prefill_chunk, config.idle_prefill_tokens)
        budget = config.prefill_chunk if decoding else idle
        counts = [count for _, count in plan.prefill]
        computed = sum(counts) if config.packs else max(counts, default=0) * len(counts)
        assert computed <= budget, "padding counts too, where it is computed"

    def _check_order(self, plan: Plan) -> None:
        """First come, first served within a client's priority.

        Only a member of a group may be passed: it waits for the group's prompt, not for a row.
        While a fault is being traced, the one accused goes first.
        """
        if self.scheduler._suspects:
            return
        started = {s.id for s in plan.admit}
        waiting = [s for s in self.added if s.status is Status.WAITING and s.group is None]
        for admitted in plan.admit:
            own = [s for s in waiting if s.client == admitted.client and s.id not in started]
            assert all(_order(admitted) <= _order(s) for s in own)


def _order(sequence: Sequence) -> tuple[int, float]:
    return sequence.priority, sequence.arrival


_clock = iter(range(1, 1 << 62))


def sequence(prompt: int = 4, max_tokens: int = 4, *, end: bool = False, **fields: Any) -> Sequence:
    """A sequence with a prompt of this many tokens."""
    tick = next(_clock)
    params = SamplingParams(
        max_tokens=max_tokens,
        stop_token_ids=frozenset({END} if end else ()),
        min_tokens=fields.pop("min_tokens", 0),
    )
    # Distinct first tokens: what one sequence is given is not what another is.
    return Sequence([tick % 1000, *range(1, prompt)], params, arrival=float(tick), **fields)
