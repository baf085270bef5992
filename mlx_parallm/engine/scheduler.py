"""The ContinuousBatchScheduler: who computes what in the next step. No mlx here.

There is no prefill phase and no decode phase, only sequences whose
`num_computed` catches up with `num_tokens`. All tokens but the last are caught
up in chunks; the last one is computed together with every other running
sequence's, and its logits give the next token. New requests, prefix hits and
preempted sequences that come back all are that one rule.

One step is planned while the step before is still computing, so a plan must
not need that step's tokens: a running sequence is planned again unless it is
known to be at its max_tokens, and a token sampled past an end is dropped.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from collections.abc import Sequence as Items
from dataclasses import replace
from typing import Any

from mlx_parallm.cache.length_class import capacity_for
from mlx_parallm.cache.prefixes.prefix_contract import Match, NaiveCache, PrefixCache
from mlx_parallm.engine import turns
from mlx_parallm.engine.fairness import Newcomers, Shares, stands_behind
from mlx_parallm.engine.networks.network_line import NetworkLine
from mlx_parallm.engine.pacing.chunks import Chunks
from mlx_parallm.engine.plan import (
    AdmitAdapter,
    Budget,
    Look,
    Plan,
    Restore,
    SchedulerConfig,
    common_pages,
)
from mlx_parallm.engine.sequence import FinishReason, Sequence, Status
from mlx_parallm.engine.turns import Portion
from mlx_parallm.engine.waiting_line import WaitingLine

BLOCK_TOKENS = 16  # KV memory is accounted in blocks of this many tokens


class ContinuousBatchScheduler:
    """Admission, chunks, forks and preemption.

    The client that was served least goes first (fairness.py), of its sequences the one
    with the lowest `priority`, then first come first served. Preemption takes the last
    in that order; a preempted sequence computes its tokens again later. Rows are taken
    where memory is full, where a sequence of a lower `priority` waits, and where a
    client waits that has no row.
    """

    def __init__(self, config: SchedulerConfig, prefixes: PrefixCache | None = None) -> None:
        self.config = config
        self.prefixes: PrefixCache = prefixes or NaiveCache()
        self.restore: Restore | None = None
        self.budget: Budget | None = None  # None: always the most
        self.admit_adapter: AdmitAdapter | None = None  # None: there are no adapters
        self.look: Look | None = None  # None: there are no pictures
        self.turns = turns.Turns()
        self.running: list[Sequence] = []
        self.preemptions = 0
        self.paused = False  # nothing is computed
        self.admits = True  # False: only sequences that have begun
        self._shares = Shares()
        self._newcomers = Newcomers()
        self._line = WaitingLine(self._shares)
        self.networks = NetworkLine(self._shares)
        self._besides = 0.0  # seconds of the step that is planned, for other work
        self._num_waiting = 0
        self._followers: dict[int, list[Sequence]] = {}  # by their leader's id
        self._leaders: dict[Hashable, Sequence] = {}
        self._suspects: set[int] = set()
        self._accused: Sequence | None = None
        self._chunks = Chunks()
        self._release: list[Sequence] = []
        self._retired: list[Sequence] = []  # their last token is in flight

    def configure(self, **bounds: Any) -> None:
        """Change fields of `config`; holds from the next plan on."""
        self.config = replace(self.config, **bounds)

    # Requests

    @property
    def num_waiting(self) -> int:
        """Sequences without a row."""
        return self._num_waiting

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        waits = self.running or self._num_waiting
        return bool(self._release or (waits and not self.paused))

    @property
    def unfinished(self) -> list[Sequence]:
        """Every sequence that will get more tokens."""
        waiting = list(self._line)
        waiting += [follower for group in self._followers.values() for follower in group]
        return self.running + [s for s in waiting if s.status is Status.WAITING]

    def recompute(self, sequence: Sequence) -> None:
        """Compute a running sequence's tokens again; its row was given back."""
        self._preempt(sequence)

    @property
    def kv_tokens_used(self) -> int:
        """Tokens of KV memory that rows hold."""
        return self._area(self.running)

    @property
    def decoding(self) -> list[Sequence]:
        """Sequences that the next step will most likely decode."""
        return turns.decoding(self.turns.following(self.running), self.running)

    def fits(self, sequence: Sequence) -> bool:
        """Whether the sequence could ever run to its end, alone."""
        total = len(sequence.prompt) + sequence.params.max_tokens
        size = capacity_for(total) if self.config.packs else _blocks(total)
        return size <= self.config.kv_tokens

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait for a row."""
        self._num_waiting += 1
        served = [s.client for s in self.running]
        wait = self._line.clients + self.networks.clients
        if sequence.client not in served + wait:
            self._shares.welcome(sequence.client, served, wait)
        self._push(sequence)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence, wherever it is; its row goes back in the next plan."""
        if sequence.status is Status.FINISHED:
            return
        if sequence.status is Status.WAITING:
            self._num_waiting -= 1  # the heap drops it when it comes up
        elif sequence in self.running:
            self.running.remove(sequence)
            self._release.append(sequence)
        else:
            self._retired.remove(sequence)
        sequence.status, sequence.finish_reason = Status.FINISHED, reason
        self._acquit(sequence)
        self.disband(sequence)

    # One step

    def schedule(self) -> Plan:
        """Plan the next step from what is known now."""
        plan = Plan(release=self._release)
        self._release = []
        if self.paused:
            return plan
        plan.portion = self.turns.take(self.running)
        self._retire(plan)
        if not self._make_room(plan):
            self._admit(plan)
        plan.moves = self.turns.even_out(plan.portion, self.running)
        self._predict(plan)
        left_out = {s.id for s in self._catch_up(plan)}
        decoding = turns.decoding(plan.portion, self.running)
        plan.decode = [s for s in decoding if s.params.max_tokens > 0 and s.id not in left_out]
        return plan

    def _predict(self, plan: Plan) -> None:
        """Plan what plain networks compute."""
        self._besides = 0.0
        if self.networks.has_work:
            decoding = turns.decoding(plan.portion, self.running)
            behind = len(turns.behind(plan.portion, self.running))
            plan.predictions, self._besides = self.networks.plan(len(decoding), behind)

    def launched(self, plan: Plan) -> None:
        """A plan is on its way: count its tokens as computed."""
        for sequence in plan.decode:
            sequence.num_computed += 1
            sequence.in_flight += 1
            sequence.ledger.steps += 1
            sequence.ledger.rows += len(plan.decode)

    def update(self, sequence: Sequence, tokens: Items[int]) -> list[int]:
        """Take the tokens that a step sampled for a sequence.

        Returns:
            those that count: none of a finished sequence, none behind an end, none that the
            sequence's grammar does not allow, which ends it with an error.
        """
        taken: list[int] = []
        params = sequence.params
        if sequence.status is Status.RUNNING:
            sequence.num_computed += max(0, len(tokens) - 1)  # guesses that were right
        for token in tokens:
            sequence.in_flight = max(0, sequence.in_flight - 1)
            if sequence.status is Status.FINISHED:
                continue
            constraint = sequence.constraint
            if constraint is not None:
                constraint.take(token)
                if constraint.error is not None:
                    self.finish(sequence, FinishReason.ERROR)
                    continue
            sequence.output.append(token)
            taken.append(token)
            ends = token in params.end_token_ids and len(sequence.output) > params.min_tokens - 1
            if ends or (constraint is not None and constraint.done):
                self.finish(sequence, FinishReason.STOP)
            elif len(sequence.output) >= params.max_tokens:
                self.finish(sequence, FinishReason.LENGTH)
        self._shares.charge_output(sequence.client, len(taken))
        self._acquit(sequence)
        return taken

    def suspect_all(self) -> list[Sequence]:
        """A step failed: every row is recomputed, and tried one by one.

        A suspect is tried beside rows that are known to be well. Where that fails,
        one of those may have met something new, so the suspect is tried again with
        nobody else.

        Returns:
            the sequences at fault: one that failed with nobody else, if any.
        """
        self.running += self._retired
        self._retired = []
        rows = list(self.running)
        tried = [s for s in rows if s.id in self._suspects]
        guilty = tried if len(rows) == 1 else []
        self._accused = tried[0] if len(tried) == 1 and not guilty else None
        for sequence in rows:
            self._preempt(sequence)
            sequence.in_flight, sequence.prompt_scores = 0, []
        self._release = []
        self._suspects.update(s.id for s in rows)
        return guilty

    def _acquit(self, sequence: Sequence) -> None:
        self._suspects.discard(sequence.id)
        if self._accused is sequence:
            self._accused = None

    # Rows

    def _retire(self, plan: Plan) -> None:
        """Take the rows of sequences whose last token is already being sampled."""
        for sequence in list(self.running):
            at_end = sequence.num_sampled >= sequence.params.max_tokens
            if sequence.in_flight and at_end and Portion.of(sequence) == plan.portion:
                self.running.remove(sequence)
                self._retired.append(sequence)
                plan.release.append(sequence)

    def _cost(self, sequence: Sequence) -> int:
        tokens = sequence.num_tokens + sequence.in_flight + 1 + self.config.lookahead
        return capacity_for(tokens) if self.config.packs else _blocks(tokens)

    def _area(self, rows: Items[Sequence]) -> int:
        costs = list(map(self._cost, rows))
        return sum(costs) if self.config.packs else len(costs) * max(costs, default=0)

    def _fits_beside(self, sequence: Sequence) -> bool:
        """Whether there is memory for one more row; a lone one always has it."""
        return not self.running or self._area([*self.running, sequence]) <= self.config.kv_most

    def _make_room(self, plan: Plan) -> bool:
        """Preempt until the next token of every row fits; true if any was."""
        preempted = False
        while self.kv_tokens_used > self.config.kv_most and len(self.running) > 1:
            victim = max(self.running, key=self._shares.turn)
            self._preempt(victim)
            plan.release.append(victim)
            preempted = True
        return preempted

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.disband(sequence)
        sequence.status, sequence.num_computed = Status.WAITING, 0
        self.preemptions += 1
        sequence.ledger.preemptions += 1
        self.add(sequence)

    def _admit(self, plan: Plan) -> None:
        passed: list[Sequence] = []  # their adapters have no slot as long as rows use all
        while (sequence := self._line.peek()) is not None and self._may_join:
            if not (self._has_place(sequence) or self._can_displace(sequence, plan)):
                break
            if sequence in plan.release or sequence.in_flight:
                break  # displaced: its newest token is still to be read
            self._line.pop()
            self.turns.begin(sequence)
            if not (self.admits or sequence.output) or not self._has_adapter(sequence):
                passed.append(sequence)
            elif not self._follows(sequence):
                self._displace_for(sequence, plan)
                self._start(sequence, plan)
        for sequence in passed:
            self._push(sequence)

    def _has_place(self, sequence: Sequence) -> bool:
        return len(self.running) < self.config.max_batch_size and self._fits_beside(sequence)

    def _victims(self, sequence: Sequence, plan: Plan) -> list[Sequence]:
        """Rows that may be taken for a waiting sequence.

        Not those that this plan begins, and none that would then wait behind one of these.
        """
        begun = [s for s in self.running if s not in plan.admit]
        return [
            victim
            for victim in self._shares.victims(sequence, begun)
            if not any(stands_behind(new, victim) for new in plan.admit)
        ]

    def _can_displace(self, sequence: Sequence, plan: Plan) -> bool:
        """Whether there would be a place without the rows that may be taken for it."""
        victims = self._victims(sequence, plan)
        staying = [s for s in self.running if s not in victims]
        if len(staying) >= min(len(self.running), self.config.max_batch_size):
            return False
        return not staying or self._area([*staying, sequence]) <= self.config.kv_most

    def _displace_for(self, sequence: Sequence, plan: Plan) -> None:
        """Preempt rows that may be taken until there is a place."""
        for victim in self._victims(sequence, plan):
            if self._has_place(sequence):
                return
            self._preempt(victim)
            plan.release.append(victim)

    def _has_adapter(self, sequence: Sequence) -> bool:
        return self.admit_adapter is None or self.admit_adapter(sequence, self.running)

    def _start(self, sequence: Sequence, plan: Plan) -> None:
        self._num_waiting -= 1
        sequence.status = Status.PREFILL
        sequence.micro_batch = self.turns.smallest(self.running)
        new = sequence.begun is None
        sequence.begun = sequence.begun or time.perf_counter()
        self.running.append(sequence)
        plan.admit.append(sequence)
        if self.restore is not None:
            sequence.ledger.from_disk += self.restore(
                sequence.namespace, sequence.keys, sequence.num_tokens - 1
            )
        match = self._match(sequence)
        sequence.num_cached = 0
        if match.num_tokens:
            sequence.num_computed = sequence.num_cached = match.num_tokens
            self.prefixes.lock(match)  # or rows released in this step could evict it
            plan.loads.append((sequence, match))
        if new:
            self._shares.charge_prompt(sequence.client, sequence.num_pending)

    def _match(self, sequence: Sequence, record: bool = True) -> Match:
        """The cached prefix; the last token is always computed, scored ones too."""
        if sequence.params.prompt_logprobs is not None or sequence.pooling is not None:
            return Match()
        return self.prefixes.match(
            sequence.namespace,
            sequence.keys,
            limit=sequence.num_tokens - 1,
            need_snapshot=self.config.aligned,
            record=record,
        )

    @property
    def _may_join(self) -> bool:
        """Suspects join one at a time, rows that are known to be well."""
        return self._suspects.isdisjoint(s.id for s in (*self.running, *self._retired))

    def _follows(self, sequence: Sequence) -> bool:
        """Let a sequence wait for another one that is computing what it needs."""
        key = self._leader_key(sequence)
        if key is None:
            return False
        leader = self._leaders.get(key)
        if leader is None:
            self._leaders[key] = sequence
            return False
        if not sequence.is_twin(leader) and not self._worth_waiting(sequence, leader):
            return False
        self._followers.setdefault(leader.id, []).append(sequence)
        return True

    def _leader_key(self, sequence: Sequence) -> Hashable | None:
        """Equal for sequences of which one may compute a prefix for the others."""
        if sequence.group is not None and len(sequence.prompt) > 1 and not sequence.output:
            return sequence.group, sequence.namespace
        page = self.prefixes.page_size
        if not self.config.shares_prefixes or sequence.num_tokens <= page:
            return None
        return (sequence.namespace, *sequence.keys[:page])

    def _worth_waiting(self, sequence: Sequence, leader: Sequence) -> bool:
        """Whether waiting for the other one saves clearly more tokens than the cache does."""
        if sequence.params.prompt_logprobs is not None or sequence.pooling is not None:
            return False
        shared = common_pages(sequence.keys, leader.keys, self.prefixes.page_size)
        cached = self._match(sequence, record=False).num_tokens
        return shared >= cached + 2 * self.prefixes.page_size

    def disband(self, sequence: Sequence) -> None:
        """A leader has ended or is computed: its followers are scheduled on their own again."""
        key = self._leader_key(sequence)
        if self._leaders.get(key) is sequence:
            del self._leaders[key]
        for follower in self._followers.pop(sequence.id, []):
            if follower.status is Status.WAITING:
                self._push(follower)

    # Tokens

    def _catch_up(self, plan: Plan) -> list[Sequence]:
        """Plan chunks of prompts; returns rows that the step leaves out."""
        behind = turns.behind(plan.portion, self.running)
        if self.look is not None:
            behind = [s for s in behind if self._sees(s, self.look)]
        if not behind:
            return []  # most steps: a budget takes time to work out
        behind.sort(key=self._shares.turn)
        decoding = turns.decoding(plan.portion, self.running)
        budget = self._budget(len(decoding), len(behind))
        behind, left_out = self._newcomers.first(behind, decoding, budget)
        page = self.prefixes.page_size
        for sequence, count in self._chunks.divide(behind, budget, self.config, page):
            if count:
                plan.prefill.append((sequence, count))
                sequence.ledger.chunks += 1
                sequence.num_computed += count
            if sequence.num_pending <= 1:
                self._caught_up(sequence, plan)
        return left_out if self.config.packs else []

    @staticmethod
    def _sees(sequence: Sequence, look: Look) -> bool:
        """Whether a sequence's next token waits for no picture."""
        if sequence.media is None:
            return True
        look(sequence)
        return sequence.media.computable(sequence.num_computed, 1) > 0

    def _budget(self, decoding: int, behind: int) -> int:
        """Prompt tokens of the next step."""
        most = self.config.prefill_chunk if decoding else self.config.idle_prefill_tokens
        if self.budget is None:
            return most
        return min(most, self.budget(decoding, behind, self._besides))

    def _caught_up(self, sequence: Sequence, plan: Plan) -> None:
        """A prompt is computed: those of its group get a copy of its row."""
        self._run(sequence, plan)
        followers = self._followers.pop(sequence.id, [])
        self.disband(sequence)
        for follower in [f for f in followers if f.status is Status.WAITING]:
            if self._may_join and sequence.is_twin(follower) and self._has_place(follower):
                self._num_waiting -= 1
                follower.num_computed = sequence.num_computed
                follower.num_cached = sequence.num_computed
                follower.prompt_scores = sequence.prompt_scores
                follower.micro_batch = sequence.micro_batch
                self.running.append(follower)
                plan.forks.append((follower, sequence))
                self._run(follower, plan)
            else:
                self._push(follower)

    @staticmethod
    def _run(sequence: Sequence, plan: Plan) -> None:
        sequence.status = Status.RUNNING
        if sequence.params.max_tokens == 0:
            plan.complete.append(sequence)

    def _push(self, sequence: Sequence) -> None:
        if sequence.prediction is not None:
            self.networks.push(sequence)
        else:
            self._line.push(sequence, first=sequence is self._accused)


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
