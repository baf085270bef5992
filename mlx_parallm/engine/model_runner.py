"""The ModelRunner: a plan becomes forwards, and forwards become sampled tokens.

How rows are laid out in forwards is `forwards`; what rides on them is `riders` (of
prompts), `speculation` (guesses) and `prefixes` (finished prefixes).
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.cache.packing import can_pack
from mlx_parallm.cache.prefixes.prefix_store import PrefixStore
from mlx_parallm.cache.row_cache import RowCache
from mlx_parallm.cache.span import Row
from mlx_parallm.engine.adapters.adapter_pool import AdapterPool
from mlx_parallm.engine.forward.forwards import Computed, Forwards, Work
from mlx_parallm.engine.forward.forwards_by_version import ForwardsByVersion
from mlx_parallm.engine.forward.packed_forwards import PackedForwards
from mlx_parallm.engine.forward.padded_forwards import PaddedForwards
from mlx_parallm.engine.forward.picture_encoder import PictureEncoder
from mlx_parallm.engine.forward.riders import PromptRiders
from mlx_parallm.engine.grammar.masks import MaskFiller, Masks
from mlx_parallm.engine.guard.row_faults import fault_of
from mlx_parallm.engine.guessing.drafter import Drafter
from mlx_parallm.engine.guessing.speculation import Speculation
from mlx_parallm.engine.networks.network_forwards import NetworkForwards
from mlx_parallm.engine.pacing.measurements import Measurements
from mlx_parallm.engine.pacing.step_clock import StepClock
from mlx_parallm.engine.pacing.step_curve import StepCurve
from mlx_parallm.engine.plan import Plan
from mlx_parallm.engine.ranks.ranks import Ranks
from mlx_parallm.engine.sampling.constrained import is_constrained, wanted_masks
from mlx_parallm.engine.sampling.sampler import Sampled, Sampler
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.step import Found, Guessed, Launched, Result, keep_scores, read_step
from mlx_parallm.engine.turns import Portion
from mlx_parallm.engine.weights import ModelWeights
from mlx_parallm.memory import citations
from mlx_parallm.models.adapting import replacements
from mlx_parallm.models.adapting.adapt import adapt
from mlx_parallm.models.adapting.attention import install_attention
from mlx_parallm.models.body import BodyTap
from mlx_parallm.models.checkpoint.parameters import Parameters

if TYPE_CHECKING:
    from mlx_parallm.models.vision.vision import Vision


@dataclass(slots=True)
class Begun:
    """A step whose forward computes, and that has not sampled.

    Attributes:
        forwards: that compute it.
        began: when; besides: seconds that it took before its forward.
        guessing: whether guesses were asked for.
        masks: those of its rows, where they were begun already.
    """

    plan: Plan
    work: Work
    computed: Computed
    forwards: Forwards
    began: float
    besides: float
    guessing: bool
    masks: Future[Masks] | None = None

    @property
    def constrained(self) -> bool:
        """Whether some of its rows have a grammar."""
        return is_constrained(self.work.decode)

    @property
    def waits(self) -> bool:
        """Whether rows with a grammar sample only when the step before was read."""
        return is_constrained([s for s in self.work.decode if s.in_flight])


class ModelRunner:
    """Owns the model, the batch's caches and the sampler; one thread only.

    Args:
        model: an mlx-lm model.
        vocab_size: columns of its logits that are tokens.
        end_token_ids: its own end tokens.
        vision: what it sees with; None where it does not.
        ranks: the processes that compute it together.
    """

    def __init__(
        self,
        model: Any,
        vocab_size: int,
        end_token_ids: Iterable[int] = (),
        vision: Vision | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.ranks = ranks or Ranks()
        self.model = adapt(model)
        if not replacements.install(model):
            install_attention(model)
        self.sampler = Sampler(vocab_size)
        self.mask_filler = MaskFiller(vocab_size, end_token_ids)
        self.riders = PromptRiders(vocab_size)
        self.body = BodyTap(model)
        self.packs = can_pack(model, self.body, self.ranks.agree)
        self.pictures = None if vision is None else vision.inputs(model)
        self.weights = ModelWeights(Parameters(model))
        self.forwards_by_version = ForwardsByVersion(self._new_forwards)
        self.prefixes: PrefixStore | None = None
        self.speculation: Speculation | None = None
        self.adapters: AdapterPool | None = None
        self.encoder: PictureEncoder | None = None
        self.networks = NetworkForwards({}, Measurements())
        self.curve = StepCurve()
        self.measurements = Measurements()
        self.measurements.takers["step"] = self.curve.measured
        self._previous: tuple[list[Sequence], mx.array] | None = None
        self._clock = self._new_clock()
        self._stained = False  # something NaN may lie where no row's tokens are
        self._launches = 0

    @staticmethod
    def _new_clock() -> StepClock:
        return StepClock(eager=mx.default_device().type == mx.DeviceType.cpu)

    def _new_forwards(self) -> Forwards:
        if not self.packs:
            return PaddedForwards(self.model, self.body, self.riders, self.pictures)
        on_gpu = mx.default_device().type == mx.DeviceType.gpu
        return PackedForwards(self.model, self.body, self.riders, self.pictures, on_gpu=on_gpu)

    @property
    def forwards(self) -> Forwards:
        """Those of the current weights."""
        return self.forwards_by_version.of(Portion(self.weights.current))

    def row_of(self, sequence: Sequence) -> Row | None:
        """The sequence's row, where it has one."""
        return self.forwards_by_version.of_sequence(sequence).rows.get(sequence.id)

    @property
    def cache(self) -> BatchedCache | RowCache:
        """What holds the rows of the current weights."""
        return self.forwards.cache

    def speculate(self, drafter: Drafter, most: int) -> None:
        """Guess up to `most` tokens a step from now on."""
        self.speculation = Speculation(drafter, most, self.measurements, packs=self.packs)

    def guesses(self, sequences: list[Sequence]) -> int:
        """Tokens worth guessing for these sequences in their next step.

        More than 0 needs every token so far on the host: the step before must
        be collected first.
        """
        if self.speculation is None or not sequences:
            return 0
        return self.speculation.choose(sequences)

    def must_read_first(self, sequences: list[Sequence], predicts: bool = False) -> bool:
        """Whether the step before has to be read before these sequences' next one is begun.

        A grammar's mask needs every token so far, and a client waits for its first token. A GPU
        computes the next forward while they are read; on a CPU that forward would have to end
        first. So would plain networks (`predicts`), which have a stream of their own on a GPU.
        """
        if mx.default_device().type != mx.DeviceType.cpu:
            return False
        first_tokens = any(s.in_flight and not s.output for s in sequences)
        return predicts or first_tokens or is_constrained(sequences)

    # A step

    def begin(self, plan: Plan, guesses: int = 0) -> Begun:
        """Start a step's forward; returns while it computes."""
        try:
            return self._begin(plan, guesses)
        finally:
            for _, match in plan.loads:
                assert self.prefixes is not None
                self.prefixes.tree.unlock(match)

    def _begin(self, plan: Plan, guesses: int) -> Begun:
        began = time.perf_counter()
        for sequence in plan.release:
            self.release(sequence)
        if self._stained:
            for forwards in self.forwards_by_version.all:
                forwards.cache.scrub()
            self._stained = False
        for sequence, portion in plan.moves:
            self.forwards_by_version.take_over(sequence, portion, Portion.of(sequence))
        for sequence, match in plan.loads:
            assert self.prefixes is not None
            forwards = self.forwards_by_version.of_sequence(sequence)
            self.prefixes.load(forwards.join(sequence), match)
        besides = time.perf_counter() - began
        forwards = self.forwards_by_version.of(plan.portion)
        work = self._work(plan, forwards, guesses)
        masks = None
        known = not any(s.in_flight for s in work.decode)
        if self.ranks.samples and known and is_constrained(work.decode):
            masks = self._start_masks(work)
        with self.weights.over(plan.portion.weights):
            computed = forwards.compute(work)
        if self.speculation is not None:
            for sequence, leader in plan.forks:
                self.speculation.drafter.fork(sequence, leader)
        begun = Begun(
            plan, work, computed, forwards, began, besides, guessing=guesses > 0, masks=masks
        )
        if begun.constrained and computed.logits is not None:
            mx.async_eval(computed.logits)
        return begun

    def launch(self, begun: Begun) -> Launched:
        """Start a step's sampling. Where it waits for the step before, that was read."""
        plan, work, computed = begun.plan, begun.work, begun.computed
        masks, waited_s, sampled = None, 0.0, None
        if self.ranks.samples:
            masks, waited_s = self._masks(begun)
            sampled = self._sample(work, computed, masks)
        self._start(begun, sampled)
        if self.prefixes is not None:
            for sequence in work.chunked:
                self.prefixes.save_chunk(begun.forwards.rows[sequence.id], sequence)
        if self.speculation is not None:
            self.speculation.drafter.observe(plan.decode, guessing=begun.guessing)
        besides = begun.besides + waited_s
        if work.proposal is not None:
            besides += work.proposal.seconds
        alone = not (plan.loads or plan.forks or plan.release)
        waited = self._clock.launched(computed.tokens, alone=alone, besides=besides)
        self._launches += 1
        return Launched(
            number=self._launches,
            decode=work.decode,
            sampled=sampled,
            guessed=_guessed(work, computed),
            scores=computed.scores,
            complete=[(s, self.riders.pooled(s)) for s in plan.complete],
            began=begun.began,
            waited=waited,
            cited=computed.cited,
            cited_by=computed.cited_by,
            tokens=computed.tokens,
            masked=masks is not None,
        )

    def _start_masks(self, work: Work) -> Future[Masks] | None:
        """Begin with the masks of this step; None where no row wants one."""
        guesses = None if work.proposal is None else np.array(work.proposal.guesses)
        wanted = wanted_masks(work.decode, guesses, work.guesses)
        return self.mask_filler.start(wanted) if wanted else None

    def _masks(self, begun: Begun) -> tuple[Masks | None, float]:
        """The masks of a step, and the seconds that were waited for them."""
        if not begun.constrained:
            return None, 0.0
        masks = self._start_masks(begun.work) if begun.masks is None else begun.masks
        since = time.perf_counter()
        found = None if masks is None else masks.result()
        return found, time.perf_counter() - since

    def _work(self, plan: Plan, forwards: Forwards, guesses: int) -> Work:
        chunks = {sequence.id: count for sequence, count in plan.prefill}
        for sequence, _ in plan.prefill:
            forwards.join(sequence)
        decode = forwards.order(plan.decode, chunks, guesses)
        work = Work(decode, chunks, [sequence for sequence, _ in plan.prefill], plan.forks)
        if guesses and self.speculation is not None and decode:
            without = {sequence.id for sequence, _ in plan.forks}
            work.proposal = self.speculation.propose(decode, guesses, without)
        if work.proposal is None:
            work.last = self._lazy_tokens(decode)
        return work

    def _sample(self, work: Work, computed: Computed, masks: Masks | None) -> Sampled | None:
        self._previous = None
        if computed.logits is None or computed.layout is None:
            return None
        if work.proposal is not None:
            guesses = mx.array(work.proposal.guesses)
            return self.sampler.sample_ahead(
                computed.logits, work.decode, guesses, computed.layout, masks
            )
        sampled = self.sampler.sample(computed.logits, work.decode, masks)
        self._previous = (work.decode, sampled.tokens)
        return sampled

    def _start(self, begun: Begun, sampled: Sampled | None) -> None:
        """Let the device compute everything that the step made."""
        computed = begun.computed
        arrays: list[mx.array] = []
        if self.ranks.samples:
            arrays += [array for score in computed.scores for array in score.arrays]
        if sampled is not None:
            arrays += sampled.arrays
        arrays += [array for part in computed.cited for array in (part.ids, part.weights)]
        drafts = [] if self.speculation is None else self.speculation.drafter.caches
        # The caches too: a graph that is not evaluated grows from step to step.
        held = [begun.forwards.cache.arrays, *(cache.arrays for cache in drafts)]
        mx.async_eval(arrays, self.riders.arrays, *held)

    def predict(self, predictions: list[tuple[Sequence, int]]) -> list[Result]:
        """Compute time steps of plain networks; returns those that have ended."""
        began = time.perf_counter()
        results = self.networks.compute(predictions)
        self._clock.interrupted(time.perf_counter() - began)
        return results

    def read(self, launched: Launched) -> Found:
        """Wait for what a step computed; ranks that do not sample are told by the one that does."""
        if launched.found is None:
            launched.found = self.ranks.read(launched.number, lambda: read_step(launched))
        return launched.found

    def collect(self, launched: Launched) -> list[Result]:
        """Read what a step computed, and take back what it computed for wrong guesses."""
        if launched.guessed is not None and launched.found is None:
            self._note_drafted(launched.guessed)
        found = self.read(launched)
        for scores, read in zip(launched.scores, found.scores, strict=True):
            keep_scores(scores, read)
        complete = zip(launched.complete, found.pooled, strict=True)
        results = [Result(s, complete=True, pooled=pooled) for (s, _), pooled in complete]
        sampled = zip(launched.decode, found.tokens, found.logprobs, found.errors, strict=True)
        results += [Result(s, tokens, scored, error=e) for s, tokens, scored, e in sampled]
        if launched.guessed is not None:
            self._take_back(launched.guessed, launched.decode, found)
        _cite(launched, results)
        for result in results:
            result.error = result.error or fault_of(result.sequence, result.pooled)
            if result.error is not None:
                self._stained = True
                if self.row_of(result.sequence) is None:
                    # Another row may have its slot already, and what it left there.
                    raise result.error
        self._measure(launched)
        return results

    def interrupted(self, seconds: float) -> None:
        """Something else took so long between two steps."""
        self._clock.interrupted(seconds)

    def rest(self) -> None:
        """Nothing runs: the time until the next step is not its own."""
        self._clock.rest()

    def reset(self) -> None:
        """Forget every row, after a step failed."""
        self.forwards_by_version.reset()
        if self.speculation is not None:
            self.speculation.drafter.reset()
        self.sampler.forget()
        self.riders.reset()
        if self.encoder is not None:
            self.encoder.reset()
        self.body.select(None)
        self._previous = None
        self._stained = False
        self._clock = self._new_clock()

    # Guesses

    def _note_drafted(self, guessed: Guessed) -> None:
        assert self.speculation is not None
        np.array(guessed.proposal.guesses)  # waits for them
        stats = self.speculation.lengths.stats
        stats.draft_time += time.perf_counter() - guessed.proposal.began

    def _take_back(self, guessed: Guessed, sequences: list[Sequence], found: Found) -> None:
        """Let rows forget the guesses that were wrong."""
        assert self.speculation is not None
        counts = guessed.proposal.counts.tolist()
        for sequence, count, right in zip(sequences, counts, found.accepted, strict=True):
            if self.row_of(sequence) is not None:
                self.forwards_by_version.of_sequence(sequence).rewind(sequence, count - right)
        # What they wrote stays there.
        self._stained = self._stained or any(error is not None for error in found.errors)
        self.speculation.verified(sequences, guessed.proposal, found.accepted)

    def _measure(self, launched: Launched) -> None:
        timed = self._clock.read(launched.began, launched.tokens, waited=launched.waited)
        if timed.own and timed.tokens:
            self.measurements.note("step", timed.tokens, timed.seconds)
        if self.speculation is None or not launched.decode:
            return
        size, work, guesses = len(launched.decode), 0.0, 0
        lengths = self.speculation.lengths
        if launched.guessed is not None:
            counts = launched.guessed.proposal.counts
            work, guesses = lengths.work(counts), int(counts.sum())
        alone = timed.own and launched.tokens == timed.tokens == size + guesses
        # Steps with masks wait for the one before, whether they guess or not.
        waited = launched.waited and not (launched.masked and launched.guessed is None)
        self.measurements.note("guessing", size, work, timed.seconds, waited=waited, alone=alone)
        lengths.stats.steps += work > 0

    # Rows

    def release(self, sequence: Sequence) -> None:
        """Give a sequence's row back, if it has one; its full pages are kept as a prefix."""
        forwards = self.forwards_by_version.of_sequence(sequence)
        row = forwards.rows.get(sequence.id)
        if row is None:
            return
        if self.speculation is not None:
            self.speculation.forget(sequence)
        self.riders.forget(sequence)
        if row.index >= row.home.num_decoding and not forwards.cache.is_finite(row, 0):
            self._stained = True  # nothing was sampled that would have shown it
        if self.prefixes is not None:
            self.prefixes.save(row, sequence)
            self.prefixes.forget(sequence)
        forwards.release(sequence)
        self.forwards_by_version.forget_empty(self.weights.current)

    def _lazy_tokens(self, sequences: list[Sequence]) -> mx.array | None:
        """(R,) newest tokens of the first R sequences, all that the host has not read among
        them; None where it has read all."""
        flying = [place for place, s in enumerate(sequences) if s.in_flight]
        if not flying or self._previous is None:
            return None
        before, tokens = self._previous
        running = sequences[: flying[-1] + 1]
        if len(flying) == len(before) == len(running) and all(map(operator.is_, before, running)):
            return tokens
        place = {s.id: r for r, s in enumerate(before)}
        lazy = tokens[mx.array([place[s.id] if s.in_flight else 0 for s in running])]
        if len(flying) == len(running):
            return lazy
        known = mx.array(np.array([s.newest for s in running], dtype=np.int32))
        return mx.where(mx.array([bool(s.in_flight) for s in running]), lazy, known)


def _guessed(work: Work, computed: Computed) -> Guessed | None:
    if work.proposal is None or computed.layout is None:
        return None
    return Guessed(work.proposal, computed.layout)


def _cite(launched: Launched, results: list[Result]) -> None:
    """Add the citations of a step to its results."""
    if not launched.cited:
        return
    by_row = citations.read(launched.cited)
    for result in results:
        row, first = launched.cited_by.get(result.sequence.id, (-1, 0))
        if row in by_row:
            result.citations = by_row[row][first : first + len(result.tokens)]
