"""EngineStats: what an engine counts, and the Counter that does it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mlx_parallm.engine.guard.memory_guard import MemoryGuard
from mlx_parallm.engine.guessing.decision import Reason
from mlx_parallm.engine.model_runner import ModelRunner
from mlx_parallm.engine.scheduler import ContinuousBatchScheduler
from mlx_parallm.engine.sequence import FinishReason, Sequence
from mlx_parallm.engine.step import Launched


def _no_reasons() -> dict[str, int]:
    return {reason.value: 0 for reason in Reason}


@dataclass(slots=True)
class EngineStats:
    """Counters since start, and the state now. Times in seconds, memory in bytes.

    Attributes:
        prefix_pages_held: pages that are neither free nor cached, and cached nodes that are locked:
            0 at rest.
        memory_used: by the whole process; memory_left: what it can still take, see MemoryGuard.
        speculation_reasons: steps by the reason why they guessed or did not; see Reason.
    """

    running: int = 0
    waiting: int = 0
    rows: int = 0
    kv_tokens_used: int = 0
    kv_tokens_total: int = 0
    kv_bytes: int = 0
    memory_used: int = 0
    memory_limit: int = 0
    memory_left: int = 0
    steps: int = 0
    step_time: float = 0.0
    decode_steps: int = 0
    decode_rows: int = 0
    computed_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    predicted_rows: int = 0
    prediction_forwards: int = 0
    accepted: int = 0
    finished: int = 0
    aborted: int = 0
    failed: int = 0
    preemptions: int = 0
    prefix_lookups: int = 0
    prefix_hits: int = 0
    prefix_hit_tokens: int = 0
    prefix_evicted_pages: int = 0
    prefix_pages: int = 0
    prefix_pages_held: int = 0
    prefix_bytes: int = 0
    speculative_steps: int = 0
    speculation_off_steps: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    draft_length: int = 0
    draft_time: float = 0.0
    speculation_reasons: dict[str, int] = field(default_factory=_no_reasons)


class Counter:
    """Updates the stats of one engine, on its thread.

    Args:
        stats: kept up to date.
    """

    def __init__(
        self,
        stats: EngineStats,
        scheduler: ContinuousBatchScheduler,
        runner: ModelRunner,
        memory: MemoryGuard,
    ) -> None:
        self.stats = stats
        self._memory = memory
        self._scheduler = scheduler
        self._runner = runner

    def step(self, began: float, launched: Launched | None) -> None:
        """Count a step, and look at the state."""
        stats = self.stats
        stats.step_time += time.perf_counter() - began
        if launched is not None:
            stats.steps += 1
            stats.decode_steps += bool(launched.decode)
            stats.decode_rows += len(launched.decode)
            stats.computed_tokens += launched.tokens
        self.look()

    def look(self) -> None:
        """Look at the state."""
        scheduler, stats = self._scheduler, self.stats
        stats.running, stats.waiting = len(scheduler.running), scheduler.num_waiting
        stats.rows = self._runner.forwards_by_version.num_rows
        stats.kv_tokens_used = scheduler.kv_tokens_used
        stats.kv_tokens_total = scheduler.config.kv_tokens
        stats.kv_bytes = self._runner.forwards_by_version.nbytes
        use = self._memory.use
        stats.memory_used, stats.memory_limit, stats.memory_left = use.used, use.limit, use.left
        stats.preemptions = scheduler.preemptions
        stats.prediction_forwards = self._runner.networks.forwards
        self._prefixes()
        self._speculation()

    def _prefixes(self) -> None:
        prefixes, stats = self._runner.prefixes, self.stats
        if prefixes is None:
            return
        found = prefixes.tree.stats()
        stats.prefix_lookups, stats.prefix_hits = found.lookups, found.hits
        stats.prefix_hit_tokens = found.hit_tokens
        stats.prefix_evicted_pages = found.evicted_pages
        stats.prefix_pages, stats.prefix_bytes = found.cached_pages, prefixes.nbytes
        taken = found.total_pages - found.free_pages - found.cached_pages
        stats.prefix_pages_held = taken + found.locked

    def _speculation(self) -> None:
        if self._runner.speculation is None:
            return
        stats, found = self.stats, self._runner.speculation.lengths.stats
        stats.speculative_steps, stats.draft_length = found.steps, found.current_length
        stats.drafted_tokens, stats.accepted_tokens = found.drafted, found.accepted
        stats.draft_time = found.draft_time
        stats.speculation_off_steps = found.off_steps
        stats.speculation_reasons = {reason.value: n for reason, n in found.reasons.items()}

    def tokens(self, sequence: Sequence, taken: int, first: bool) -> None:
        """Count what a step gave a sequence."""
        if sequence.prediction is not None:
            self.stats.predicted_rows += len(sequence.prediction.rows)
            return
        self.stats.generated_tokens += taken
        if first:
            self.stats.prompt_tokens += len(sequence.prompt)
            self.stats.cached_tokens += sequence.num_cached

    def end(self, reason: FinishReason) -> None:
        """Count a sequence that was answered."""
        if reason is FinishReason.ABORT:
            self.stats.aborted += 1
        elif reason is FinishReason.ERROR:
            self.stats.failed += 1
        else:
            self.stats.finished += 1
