"""The Engine: one thread that owns MLX, and one loop that every request goes through.

    drain the inbox -> schedule -> launch step t+1 -> collect step t -> update -> outbox

Step t+1 is launched before step t is read, so that the device computes while
Python thinks. Other threads talk to the loop through its inbox only.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar

import mlx.core as mx

from mlx_parallm.cache.prefixes.prefix_contract import CacheStats
from mlx_parallm.cpu.blas import fit_threads, follow_load
from mlx_parallm.engine.adapters.live_model import LiveModel
from mlx_parallm.engine.answers import Answers, Sink
from mlx_parallm.engine.config import EngineConfig
from mlx_parallm.engine.forward.assembly import assemble
from mlx_parallm.engine.forward.picture_encoder import PictureEncoder
from mlx_parallm.engine.guard.memory_guard import is_out_of_memory
from mlx_parallm.engine.guard.room import check_room
from mlx_parallm.engine.guard.row_faults import fault_for, unfollowed
from mlx_parallm.engine.guard.watchdog import Watchdog
from mlx_parallm.engine.guessing.length_controller import SpeculativeStats
from mlx_parallm.engine.inbox import Inbox
from mlx_parallm.engine.pacing.flight import Flight
from mlx_parallm.engine.ranks.events import Abort, Add, Configure, Quit
from mlx_parallm.engine.ranks.ranks import Ranks
from mlx_parallm.engine.ranks.turn import Event
from mlx_parallm.engine.sequence import FinishReason, Output, Sequence
from mlx_parallm.engine.stats import Counter, EngineStats
from mlx_parallm.engine.step import Result, output_of
from mlx_parallm.errors import (
    ModelLoadError,
    OutOfMemoryError,
    ParallmError,
    UnavailableError,
    UnsupportedError,
)
from mlx_parallm.models.loader import LoadedModel

__all__ = ["Engine", "EngineConfig", "EngineStats", "Sink"]

log = logging.getLogger(__name__)
_FAILED = "the engine failed; see the log"
T = TypeVar("T")


class Engine(LiveModel):
    """Runs sequences in one continuous batch.

    Args:
        load: makes the model; called on the engine's thread, because MLX
            streams belong to the thread that made them.
        config: bounds.
        load_draft: makes the draft model, where config.speculative is "draft".
        meet: joins the ranks that compute the model together, before it is loaded; is given
            what to call when one of them is lost.

    Attributes:
        config: the bounds in force; see `configure`.
        loaded: the model, None until it is loaded.
        ranks: the processes that compute the model together.
        reason: why nothing is accepted now, None where the engine is ready.
        on_failure: called with the reason, on a thread of the engine's, when a step takes longer
            than `step_timeout` or the loop has failed.
        thread: ends with the loop.
        runner, scheduler: its parts, once it is ready. They belong to the engine's thread:
            from another one, look at them and change them inside `call`.
    """

    def __init__(
        self,
        load: Callable[[], LoadedModel],
        config: EngineConfig,
        load_draft: Callable[[], LoadedModel] | None = None,
        meet: Callable[[Callable[[str], None]], Ranks] | None = None,
    ) -> None:
        self.config = config
        self.loaded: LoadedModel | None = None
        self.reason: str | None = "the model is loading"
        self._load = load
        self._load_draft = load_draft
        self._meet = meet
        self.ranks = Ranks()
        self._speculate = True
        self._state = "loading"
        self._stats = EngineStats()
        self.on_failure: Callable[[str], None] = lambda _: None
        self._watchdog = Watchdog(config.step_timeout, lambda reason: self.on_failure(reason))
        self._inbox = Inbox(lambda: self._watchdog.begin("a call"))
        self._answers = Answers()
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._load_error: Exception | None = None
        self._failure: str | None = None
        self.thread = threading.Thread(target=self._run, name="mlx-engine", daemon=True)

    # Any thread

    @property
    def state(self) -> str:
        """loading, ready, draining or stopped."""
        return self._state

    @property
    def stalled(self) -> str | None:
        """Why the running step may never end; None where all is well."""
        return self._watchdog.stalled

    def start(self) -> None:
        """Start the thread; returns at once."""
        self.thread.start()

    def wait_ready(self, timeout: float | None = None) -> None:
        """Wait until the model is loaded.

        Raises:
            ModelLoadError: it cannot be loaded.
            TimeoutError: not within `timeout` seconds.
        """
        if not self._ready.wait(timeout):
            raise TimeoutError("the model is still loading")
        if self._load_error is not None:
            raise self._load_error

    def submit(self, sequences: list[Sequence], sink: Sink) -> None:
        """Accept sequences; each is answered exactly once through the sink.

        Args:
            sequences: all of one request, or of several that came together.
            sink: called on the engine's thread, once a step, with what that step
                gave to all sequences that share it.

        Raises:
            UnavailableError: loading, draining or stopped.
            QueueFullError: too many are waiting already.
            OutOfMemoryError: one is larger than the whole KV memory.
        """
        with self._lock:
            if self._state != "ready":
                raise UnavailableError(f"The server cannot take requests now: {self.reason}")
            check_room(sequences, len(self._answers), self.config, self.scheduler, self.loaded)
            for sequence in sequences:
                if sequence.params.seed is None:
                    seed = secrets.randbits(53)
                    sequence.params = replace(sequence.params, seed=seed)
            self._answers.accept(sequences, sink)
            self._stats.accepted += len(sequences)
            self._inbox.put(lambda: self.add(sequences), Add(sequences))

    def abort(self, ids: Iterable[int]) -> None:
        """End sequences early; unknown and finished ones are ignored."""
        ids = list(ids)
        self._inbox.put(lambda: self.end(ids), Abort(ids))

    def call(
        self, function: Callable[[], T], *, at_rest: bool = False, event: Event | None = None
    ) -> Future[T]:
        """Run a function on the engine's thread, between two steps.

        Other ranks know nothing of it: what changes the engine is an event, see `enter`.

        Args:
            at_rest: with no step in flight: all tokens so far are known.
            event: what the function does, for the other ranks.
        """
        with self._lock:
            if self._state == "stopped":
                raise UnavailableError(f"The engine has stopped: {self.reason}")
            return self._inbox.ask(function, at_rest=at_rest, event=event)

    def enter(self, event: Event) -> Future[Any]:
        """Let the engine do something; all ranks do it between the same two steps."""
        return self.call(lambda: event.apply(self), at_rest=event.at_rest, event=event)

    def configure(
        self,
        *,
        max_batch_size: int | None = None,
        prefill_chunk: int | None = None,
        speculate: bool | None = None,
        num_draft_tokens: int | None = None,
    ) -> Future[None]:
        """Change the running engine; holds from the next step on.

        Args:
            speculate: pause or resume speculation. Where none was set up at start, True
                sets up guesses from n-grams.

        Returns:
            done once the changes hold.

        Raises:
            UnsupportedError: this model cannot speculate. Nothing is changed.
        """
        if speculate and not self.can_speculate:
            raise UnsupportedError("This model cannot guess ahead.", param="speculate")
        changes = {"max_batch_size": max_batch_size, "prefill_chunk": prefill_chunk}
        given = {name: value for name, value in changes.items() if value is not None}
        if num_draft_tokens is not None:
            self.config = replace(self.config, num_draft_tokens=num_draft_tokens)
        if speculate is not None:
            self._speculate = speculate
        self.config = replace(self.config, **given)  # type: ignore[arg-type]
        most = self.config.num_draft_tokens if self._speculate else 0
        return self.enter(Configure(given, bool(speculate), most))

    def stats(self) -> EngineStats:
        """A copy of the newest counters."""
        return replace(self._stats)

    def prefix_stats(self) -> CacheStats | None:
        """The prefix cache's counters; None where it is off."""
        if self.loaded is None or self.runner.prefixes is None:
            return None
        return self.runner.prefixes.tree.stats()

    @property
    def speculating(self) -> bool:
        """Whether speculation is set up and not paused."""
        return self._speculate and self.speculative_stats() is not None

    def speculative_stats(self) -> SpeculativeStats | None:
        """A copy of speculation's counters; None where it is off."""
        if self.loaded is None or self.runner.speculation is None:
            return None
        return self.runner.speculation.stats()

    def drain(self) -> None:
        """Refuse new sequences; those accepted are finished."""
        with self._lock:
            if self._state == "ready":
                self._state, self.reason = "draining", "the server is shutting down"

    def stop(self, timeout: float = 10) -> None:
        """End the loop; sequences that are left are answered with an error."""
        self.drain()
        self._inbox.put(self.quit, Quit())
        if self.thread.is_alive():
            self.thread.join(timeout)

    @property
    def num_live(self) -> int:
        """Sequences that are accepted and not yet answered."""
        return len(self._answers)

    # The engine's thread

    def _run(self) -> None:
        try:
            self._live_through()
        finally:
            self._watchdog.stop()
            self.ranks.close(self._failure)
            # MLX aborts the process at exit where a thread left its streams behind.
            mx.synchronize()
            mx.clear_streams()

    def _live_through(self) -> None:
        try:
            self._start_up()
        except Exception as error:  # noqa: BLE001 - start-up fails as a whole, with its reason
            self._fail_start(error)
            return
        self._ready.set()
        try:
            self._loop()
        except BaseException as error:
            log.exception("the engine's loop failed")
            self._failure = str(error) if isinstance(error, ParallmError) else _FAILED
            self._die(self._failure)
            self.ranks.close(self._failure)
            self.on_failure(self._failure)

    def _start_up(self) -> None:
        if self._meet is not None:
            self.ranks = self._meet(lambda reason: self.on_failure(reason))
        loaded = self._load()
        fit_threads(loaded.largest_matrix)
        parts = assemble(loaded, self.config, self._load_draft, self.ranks)
        self.runner, self.scheduler, self._memory = parts
        self._counter = Counter(self._stats, self.scheduler, self.runner, self._memory)
        self.loaded = loaded
        self.ranks.attach(self.runner.measurements, self._memory, self)
        self._flight = Flight(self.runner, self.scheduler, self._take, self._send_on)
        self._running = True
        self._state, self.reason = "ready", None

    def _fail_start(self, error: Exception) -> None:
        if not isinstance(error, ParallmError):
            log.debug("loading failed", exc_info=error)
            error = ModelLoadError(f"the model could not be loaded: {error}")
        with self._lock:
            self._load_error, self._failure = error, str(error)
            self._state, self.reason = "stopped", str(error)
        self._ready.set()
        self._inbox.empty()

    def _loop(self) -> None:
        self._watchdog.start()
        while self._running:
            self._begin_turn(block=not self._flight and not self.scheduler.has_work)
            self._watchdog.begin("a step")
            self._step()
            self._answers.deliver()
            follow_load()
        self._die("the server has stopped")
        self.runner.mask_filler.close()
        if self.runner.prefixes is not None:
            self.runner.prefixes.close()

    def _begin_turn(self, block: bool) -> None:
        if block:
            mx.clear_cache()  # idle: give unused memory back
            self.runner.rest()
        if block or not self.ranks.leads:
            self._watchdog.rest()
        self._inbox.run(self.ranks.begin_turn(self._inbox, block=block))

    def _step(self) -> None:
        """Launch the next step, then read the oldest one that is on its way."""
        began, following = time.perf_counter(), None
        try:
            if self._inbox.wants_rest:
                self._flight.read_all()
                self._inbox.run_at_rest()
            guesses = self._flight.read_first(predicts=self.scheduler.networks.has_work)
            if self.runner.encoder is not None and self.runner.encoder.has_work:
                self._see(self.runner.encoder)
            if self._memory.look(self.ranks.memory):
                self._give_up_one()
            plan = self.scheduler.schedule()
            self.ranks.check(plan)
            if plan.predictions:
                self._take(self.runner.predict(plan.predictions))
                self._answers.deliver()
            if not plan.empty:
                following = self._flight.launch(plan, guesses)
            self.scheduler.launched(plan)
        except Exception as error:  # noqa: BLE001 - stays with the sequence that caused it
            self._recover(error)
            following = None
        try:
            self._flight.follow(following)
        except Exception as error:  # noqa: BLE001 - as above
            self._flight.clear()
            self._recover(error)
            following = None
        self._counter.step(began, following)

    def _send_on(self) -> None:
        self._counter.look()
        self._answers.deliver()

    def _see(self, encoder: PictureEncoder) -> None:
        """Compute pictures that rows wait for, for as long as others can wait."""
        began = time.perf_counter()
        for sequence, error in encoder.work(len(self.scheduler.decoding)):
            log.warning("a picture could not be computed", exc_info=error)
            self.scheduler.finish(sequence, FinishReason.ERROR)
            self._fail(sequence, fault_for(error, "a picture of this request"))
        self.runner.interrupted(time.perf_counter() - began)

    def _recover(self, error: Exception) -> None:
        """A step failed: find the sequence at fault, keep the others.

        Which row broke a batched forward cannot be seen from outside. So all of
        them start over, one at a time beside rows that have run since; a row
        that fails alone is answered with an error.
        """
        if (verdict := self.ranks.verdict(error)) is not None:
            raise verdict
        log.warning("a step failed; its sequences are tried one by one", exc_info=error)
        try:
            self._flight.read_all()
        except Exception:
            self._flight.clear()
            log.warning("the step before it is lost too", exc_info=True)
        self.runner.reset()
        mx.clear_cache()
        if is_out_of_memory(error):
            self._memory.make_room()
        fault = fault_for(error)
        for sequence in self.scheduler.suspect_all():
            self.scheduler.finish(sequence, FinishReason.ERROR)
            self._fail(sequence, fault)

    def _give_up_one(self) -> None:
        """Memory ends, and nothing more can be freed: a row that is alone has to go, or the
        sequence that would get one."""
        for sequence in self.scheduler.unfinished[:1]:
            if len(self.scheduler.running) < 2:
                self.scheduler.finish(sequence, FinishReason.ERROR)
                self._fail(sequence, OutOfMemoryError("There is no memory for this request now."))

    def _take(self, results: list[Result]) -> None:
        for result in results:
            sequence = result.sequence
            first = not sequence.output
            lived = sequence.finish_reason is None
            taken = self.scheduler.update(sequence, result.tokens)
            if result.error is not None and sequence.finish_reason is None:
                self._end_with(result.error, result, taken, first)
                continue
            if lived and sequence.finish_reason is FinishReason.ERROR:
                self._fail(sequence, unfollowed(sequence))
                continue
            if result.complete:
                self.scheduler.finish(sequence, FinishReason.LENGTH)
            if taken or result.complete:
                self._counter.tokens(sequence, len(taken), first)
                self._send(output_of(result, taken, first))

    def _end_with(self, error: ParallmError, result: Result, taken: list[int], first: bool) -> None:
        """Send the tokens before the fault, then the error."""
        sequence = result.sequence
        if taken:
            self._counter.tokens(sequence, len(taken), first)
            self._send(output_of(result, taken, first))
        log.warning("a sequence ends with an error: %s", error)
        self.scheduler.finish(sequence, FinishReason.ERROR)
        self._fail(sequence, error)

    def _fail(self, sequence: Sequence, error: Exception) -> None:
        self._send(Output(sequence.id, finish_reason=FinishReason.ERROR, error=error))

    def _send(self, output: Output) -> None:
        if self._answers.put(output) and output.finish_reason is not None:
            self._counter.end(output.finish_reason)

    def add(self, sequences: list[Sequence]) -> None:
        """See Doer; on other ranks nobody waits for what they give."""
        if not self.ranks.leads:
            self._answers.accept(sequences, lambda outputs: None)
        for sequence in sequences:
            if sequence.id not in self._answers:
                continue
            refused = self._bind_memories(sequence)
            if refused is not None:
                self._fail(sequence, refused)
                continue
            self.scheduler.add(sequence)

    def end(self, ids: list[int]) -> None:
        """See Doer."""
        for sequence_id in ids:
            sequence = self._answers.get(sequence_id)
            if sequence is not None:
                self.scheduler.finish(sequence, FinishReason.ABORT)
                self._send(Output(sequence_id, finish_reason=FinishReason.ABORT))

    def quit(self) -> None:
        """See Doer."""
        self._running = False

    def _die(self, reason: str) -> None:
        """Answer everybody who still waits; nothing runs after this."""
        with self._lock:
            self._state, self.reason = "stopped", reason
            left = self._answers.sequences()
        for sequence in left:
            self._fail(sequence, UnavailableError(f"The request was not finished: {reason}"))
        self._answers.deliver()
        self._inbox.empty()
        self._free()

    def _free(self) -> None:
        """Free what rows hold, on the thread that made it."""
        self.runner.reset()
        mx.clear_cache()
        stats = self._stats
        stats.running = stats.waiting = stats.rows = stats.kv_tokens_used = stats.kv_bytes = 0
