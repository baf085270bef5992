"""Speculation: cheap guesses of the next tokens, verified in one forward.

A guess is accepted where it is the very token that plain decoding would have
sampled at that position: the sampler draws with (seed, position), so the output
is plain decoding's, token for token, whatever was guessed and however many. With
a deterministic guess this accepts exactly as often as rejection sampling
(Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318), since both
accept token x with the probability that the target gives it.

The LengthController measures what guessing costs and gains, step by step. From that
`decision` says how far to guess. Where it does not pay, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace

import numpy as np

from mlx_parallm.engine.guessing.acceptance import Acceptance
from mlx_parallm.engine.guessing.decision import (
    LOOK_STEPS,
    Decision,
    Promise,
    Reason,
    Snapshot,
    budget_after,
    decide,
)
from mlx_parallm.engine.guessing.drafter import Proposal
from mlx_parallm.engine.guessing.step_costs import StepCosts, bucket
from mlx_parallm.engine.sequence import Sequence

_READ = 0.1  # assumed time to read a token, over a row's share of a plain step
_READ_FREE = 0.005  # the same for a drafter that is free


def _no_reasons() -> dict[Reason, int]:
    return dict.fromkeys(Reason, 0)


@dataclass(slots=True)
class SpeculativeStats:
    """What speculation did since start; times in seconds.

    Attributes:
        reasons: steps by the reason why they guessed or did not.
    """

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    rows: int = 0
    off_steps: int = 0
    draft_time: float = 0.0
    current_length: int = 0
    reasons: dict[Reason, int] = field(default_factory=_no_reasons)

    @property
    def acceptance_rate(self) -> float:
        """Accepted over guessed."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_accepted_length(self) -> float:
        """Tokens a row with guesses gained in a step, its own sampled one included."""
        return 1 + self.accepted / self.rows if self.rows else 0.0

    def decided(self, decision: Decision) -> None:
        """Count a step's decision."""
        self.current_length = decision.length
        self.off_steps += not decision.length
        self.reasons[decision.reason] += 1

    def copy(self) -> SpeculativeStats:
        """The counters as they are now."""
        return replace(self, reasons=dict(self.reasons))


@dataclass(slots=True)
class _CatchUp:
    """What it costs a drafter to read tokens before it can guess.

    Attributes:
        seconds: to read one token, 0 before it was measured.
        prompts, outputs: mean lengths of the sequences that ended.
    """

    seconds: float = 0.0
    prompts: float = 0.0
    outputs: float = 1.0

    def measured(self, tokens: int, seconds: float) -> None:
        """The drafter read so many tokens in so many seconds."""
        if tokens:
            each = seconds / tokens
            self.seconds += (0.2 if self.seconds else 1.0) * (each - self.seconds)

    def ended(self, sequence: Sequence) -> None:
        """A sequence's prompt and output, the newer ones counting more."""
        self.prompts += 0.05 * (len(sequence.prompt) - self.prompts)
        self.outputs += 0.05 * (len(sequence.output) - self.outputs)

    @property
    def per_token(self) -> float:
        """Seconds of reading prompts, for each token that is written."""
        return self.seconds * self.prompts / max(self.outputs, 1.0)


@dataclass(slots=True)
class _PlainRun:
    """Plain steps since a decision. It holds for several steps, since deciding takes time.

    Attributes:
        rows: batch size of the decision, 0 where the newest step guessed.
        steps: since that decision.
    """

    rows: int = 0
    steps: int = 0
    decision: Decision = Decision(0, Reason.UNMEASURED)  # noqa: RUF009 - it cannot change

    def holds(self, rows: int) -> bool:
        """Whether a batch of so many rows needs no new decision."""
        return rows == self.rows and self.steps < LOOK_STEPS

    def add(self, rows: int, decision: Decision) -> None:
        """A step that follows a decision."""
        self.decision = decision
        self.rows = 0 if decision.length else rows
        self.steps += not decision.length


@dataclass(slots=True)
class _Looks:
    """Steps that are taken to measure, not because they pay; see Snapshot."""

    budget: float | None = None
    left: int = 0

    def decided(self, now: Snapshot, decision: Decision) -> None:
        """Pay for a look, or count a step of the one that goes on."""
        self.budget = budget_after(now, decision)
        if decision.reason is Reason.LOOK:
            self.left = now.look_left - 1 if now.look_left else LOOK_STEPS - 1
        elif decision.reason is Reason.DOES_NOT_PAY:
            self.left = 0


@dataclass(eq=False)
class LengthController:
    """How many tokens to guess: per row by acceptance, per batch by measured cost.

    Attributes:
        ceiling: guesses a row at most; see `limit`.
        is_free: see Drafter.
        padding: time of a padding place in a step, over that of a guess.
    """

    ceiling: int
    is_free: bool = False
    padding: float = 1.0
    stats: SpeculativeStats = field(default_factory=SpeculativeStats)
    costs: StepCosts = field(init=False)
    _acceptance: Acceptance = field(default_factory=Acceptance)
    _catch_up: _CatchUp = field(default_factory=_CatchUp)
    _looks: _Looks = field(default_factory=_Looks)
    _plain_run: _PlainRun = field(default_factory=_PlainRun)
    _tries: dict[int, int] = field(default_factory=dict)  # by batch size

    def __post_init__(self) -> None:
        self.costs = StepCosts(self.is_free)

    def limit(self, most: int) -> None:
        """Guess at most so many tokens a row from the next step on; 0 pauses guessing."""
        self.ceiling = most
        self._plain_run.rows = 0  # the decision that holds is out of date

    def choose(self, sequences: Items[Sequence], lag: Callable[[], int] = int) -> int:
        """Guesses a row for this step at most, 0 where plain decoding is faster.

        lag: says how many tokens the drafter has to read before it can guess.
        """
        rows = bucket(len(sequences))
        if self._plain_run.holds(rows):
            decision = self._plain_run.decision
        else:
            decision = self._decide(sequences, lag)
        self._tries[rows] = self._tries.get(rows, 0) + (decision.length > 0)
        self._plain_run.add(rows, decision)
        self.stats.decided(decision)
        return decision.length

    def _decide(self, sequences: Items[Sequence], lag: Callable[[], int]) -> Decision:
        now = self.snapshot(sequences, lag)
        self._plain_run.steps = 0
        decision = decide(now)
        self._looks.decided(now, decision)
        return decision

    def snapshot(self, sequences: Items[Sequence], lag: Callable[[], int] = int) -> Snapshot:
        """What is known before a step of these sequences; see `choose`."""
        willing = [s for s in sequences if s.params.speculative is not False]
        size, plain = len(sequences), self.costs.plain(len(sequences))
        now = Snapshot(size, len(willing), self.ceiling, plain)
        if not willing or not self.ceiling or plain is None:
            return replace(now, look_budget=self._looks.budget)
        return replace(
            now,
            promise=self._promise(willing, size, plain),
            is_measured=self.costs.knows_guessing(size),
            tries=self._tries.get(bucket(size), 0),
            catch_up_seconds=lag() * self._reading(plain / size),
            plain_run=self._plain_run.steps,
            look_left=0 if self.costs.has_seen_enough(size) else self._looks.left,
            look_budget=self._looks.budget,
        )

    def _reading(self, hoped: float) -> float:
        """Seconds of a token that a drafter has to read; hoped: of a row's plain step."""
        return self._catch_up.seconds or (_READ_FREE if self.is_free else _READ) * hoped

    def narrow(self, proposal: Proposal) -> int:
        """Keep the guesses that are worth verifying, the likeliest ones; returns how many."""
        if proposal.odds is None:
            return int(proposal.counts.sum())
        valid = np.arange(proposal.odds.shape[1]) < proposal.counts[:, None]
        places = np.nonzero(valid)[1]
        odds = proposal.odds[valid]
        order = np.argsort(-odds, kind="stable")
        widest = np.maximum.accumulate(places[order] + 1)
        best = self._worthwhile(len(proposal.counts), odds[order], widest)
        if not best:
            return 0
        # A row's odds fall from guess to guess, so that these are its first ones.
        kept = np.zeros_like(valid)
        kept[valid] = order.argsort(kind="stable") < best
        proposal.counts = kept.sum(axis=1).astype(np.int32)
        return best

    def work(self, counts: np.ndarray) -> float:
        """Work of a step for guesses, in guesses; counts: (B,) guesses of each row.

        Padding places count with `padding`.
        """
        return float(self._work(len(counts), counts.sum(), counts.max(initial=0)))

    def measured(
        self, size: int, work: float, seconds: float, *, waited: bool, alone: bool = True
    ) -> None:
        """Note how long a step took; work: see `work`.

        waited: it was launched after the step before was read.
        alone: nothing else was done meanwhile.
        """
        self.costs.measured(size, work, seconds, waited=waited, alone=alone)

    def caught_up(self, tokens: int, seconds: float) -> None:
        """Note how long the drafter took to read so many tokens."""
        self._catch_up.measured(tokens, seconds)

    def verified(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """A step verified a row's guesses."""
        self.stats.rows += drafted > 0
        self.stats.drafted += drafted
        self.stats.accepted += accepted
        if sequence.params.speculative is not False:
            self._acceptance.verified(sequence, drafted, accepted)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._acceptance.forget(sequence)
        self._catch_up.ended(sequence)

    def _worthwhile(self, size: int, odds: np.ndarray, widest: np.ndarray) -> int:
        """How many guesses make the most tokens a second; 0 for none.

        Args:
            odds: (n,) of all guesses, largest first.
            widest: (n,) entry i: most guesses of any row among the first i + 1.
        """
        if not odds.size:
            return 0
        plain = self.costs.plain(size) or 1.0
        work = self._work(size, np.arange(1, len(odds) + 1), widest)
        seconds = self.costs.guessing(size, np.concatenate([[0.0], work]), plain)
        rates = (size + np.concatenate([[0.0], np.cumsum(odds)])) / seconds
        return int(rates.argmax())

    def _work(self, size: int, guesses: np.ndarray, widest: np.ndarray) -> np.ndarray:
        """See `work`: of so many guesses, of which the row with the most has `widest`."""
        return np.asarray(guesses + self.padding * (size * widest - guesses))

    def _promise(self, willing: Items[Sequence], size: int, plain: float) -> Promise:
        """The best number of guesses a row for a step of `size` rows."""
        if self.is_free:
            length, gained = self.ceiling, self._acceptance.gained(willing)
            work = np.array([self.costs.work_each * len(willing)])
            seconds, tokens = float(self.costs.guessing(size, work, plain)[0]), size + gained
        else:
            lengths = np.arange(1, self.ceiling + 1)
            costs = self.costs.guessing(size, lengths * float(len(willing)), plain)
            all_tokens = size + self._acceptance.expected(willing, self.ceiling)
            best = int((costs / all_tokens).argmin())
            length, seconds, tokens = best + 1, float(costs[best]), float(all_tokens[best])
        return Promise(length, seconds + self._catch_up.per_token * tokens, tokens)
