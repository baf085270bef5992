"""Speculation: cheap guesses of the next tokens, verified in one forward.

A guess is accepted where it is the very token that plain decoding would have
sampled at that position: the sampler draws with (seed, position), so the output
is plain decoding's, token for token, whatever was guessed and however many. With
a deterministic guess this accepts exactly as often as rejection sampling
(Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318), since both
accept token x with the probability that the target gives it.

The LengthController decides how far to guess, step by step: the measured time of a
forward with so many guesses at this batch size against the tokens that the rows'
acceptance so far promises. Where it does not pay, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np

from mlx_parallm.engine.drafter import Proposal
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.step_costs import StepCosts, bucket

_MARGIN = 1.02  # guessing must promise this much more than plain decoding
_SPARE_SHARE = 0.015  # of the time of plain steps goes into looking whether guessing pays
_LOOK = 8  # steps in a row: the first ones after a change are slower than those to come
_MOST_TRIES = 2 * _LOOK  # steps of guessing at a batch size, before any of it was measured
_FEARED = 2.5  # time of a guessing step, in plain steps, before any was measured
_READ = 0.1  # time of a token that a drafter has to read, in a row's plain step, likewise
_READ_FREE = 0.005  # the same of a drafter that is free


@dataclass(slots=True)
class SpeculativeStats:
    """What speculation did since start; times in seconds."""

    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    rows: int = 0
    off_steps: int = 0
    draft_time: float = 0.0
    current_length: int = 0

    @property
    def acceptance_rate(self) -> float:
        """Accepted over guessed."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def mean_accepted_length(self) -> float:
        """Tokens a row with guesses gained in a step, its own sampled one included."""
        return 1 + self.accepted / self.rows if self.rows else 0.0


@dataclass(slots=True)
class _CatchUp:
    """What it costs a drafter to read the tokens that it did not guess itself.

    Attributes:
        seconds: of one token; per_token: of these, for each token that is written.
    """

    seconds: float = 0.0
    prompts: float = 0.0
    outputs: float = 1.0

    def ended(self, sequence: Sequence) -> None:
        """A sequence's prompt and output, the newer ones counting more."""
        self.prompts += 0.05 * (len(sequence.prompt) - self.prompts)
        self.outputs += 0.05 * (len(sequence.output) - self.outputs)

    @property
    def per_token(self) -> float:
        return self.seconds * self.prompts / max(self.outputs, 1.0)


@dataclass(eq=False)
class LengthController:
    """How many tokens to guess: per row by acceptance, per batch by measured cost.

    Attributes:
        ceiling: the most; is_free: see Drafter.
        padding: what a place of padding costs a step, in guesses.
    """

    ceiling: int
    is_free: bool = False
    padding: float = 1.0
    stats: SpeculativeStats = field(default_factory=SpeculativeStats)
    costs: StepCosts = field(init=False)
    _tries: dict[int, int] = field(default_factory=dict)
    _rates: dict[int, float] = field(default_factory=dict)
    _gains: dict[int, float] = field(default_factory=dict)
    _catch_up: _CatchUp = field(default_factory=_CatchUp)
    _rate: float = 0.7
    _gain: float = 1.0
    _spare: float | None = None
    _looking: int = 0
    _plain_at: int = 0
    _plain_run: int = 0

    def __post_init__(self) -> None:
        self.costs = StepCosts(self.is_free)

    def choose(self, sequences: Items[Sequence], lag: Callable[[], int] = int) -> int:
        """Guesses a row for this step at most, 0 where plain decoding is faster.

        A decision for a plain step holds for some more, since deciding takes time too.

        lag: says how many tokens the drafter has to read before it can guess.
        """
        rows = bucket(len(sequences))
        if rows == self._plain_at and self._plain_run < _LOOK:
            length = 0
        else:
            length = self._decide(sequences, lag)
        if length:
            self._tries[rows] = self._tries.get(rows, 0) + 1
        self._plain_at = 0 if length else rows
        self._plain_run += not length
        self.stats.current_length = length
        self.stats.off_steps += not length
        return length

    def _decide(self, sequences: Items[Sequence], lag: Callable[[], int]) -> int:
        """See `choose`."""
        plain_run, self._plain_run = self._plain_run, 0
        willing = [s for s in sequences if s.params.speculative is not False]
        size, plain = len(sequences), self.costs.plain(len(sequences))
        if not willing or not self.ceiling or plain is None or not self._may_try(size):
            return 0  # the plain step is measured first
        length, seconds, tokens = self._best(willing, size, plain)
        seconds += self._catch_up.per_token * tokens
        by_plain_steps = tokens / size * plain  # the time of as many tokens
        known = self.costs.knows_guessing(size)
        if known and by_plain_steps > _MARGIN * seconds:
            saved = plain - seconds * size / tokens
            return 0 if self._pays_look(saved, seconds) else length
        if not known:
            seconds = max(seconds, _FEARED * plain)
        loss = max(0.0, seconds - by_plain_steps)
        if self.costs.has_seen_enough(size):
            self._looking = 0
        if self._looking:
            self._looking -= 1
            return length
        if self._spare is None:
            self._spare = 0.0  # the first look is free
        elif not self._pays_look(
            loss, plain * plain_run, lambda: lag() * self._reading(plain / size)
        ):
            return 0
        self._looking = _LOOK - 1
        return length

    def _pays_look(self, lost: float, earned: float, besides: Callable[[], float] = float) -> bool:
        """Whether the account pays for some steps of the kind that seems to be the slower one.

        Args:
            lost: seconds by each of them; besides: says how many all of them lose besides.
            earned: seconds of steps since it was asked last, which a share of is paid in.
        """
        self._spare = (self._spare or 0.0) + _SPARE_SHARE * earned
        price = _LOOK * lost
        if self._spare >= price:
            price += besides()
        if self._spare < price:
            return False
        self._spare -= price
        return True

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
        """What a step has to compute for guesses: (B,) of each row, and padding by its share."""
        return float(self._work(len(counts), counts.sum(), counts.max(initial=0)))

    def measured(
        self, size: int, work: float, seconds: float, *, waited: bool, alone: bool = True
    ) -> None:
        """A step of `size` rows with so much work for guesses took so long.

        waited: it was launched after the step before was read.
        alone: nothing else was done meanwhile.
        """
        self.costs.measured(size, work, seconds, waited=waited, alone=alone)

    def caught_up(self, tokens: int, seconds: float) -> None:
        """The drafter read tokens that it had not guessed."""
        if not tokens:
            return
        known = self._catch_up.seconds
        each = seconds / tokens
        self._catch_up.seconds = each if not known else known + 0.2 * (each - known)

    def verified(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """A row's guesses were looked at."""
        self.stats.rows += drafted > 0
        self.stats.drafted += drafted
        self.stats.accepted += accepted
        if sequence.params.speculative is False:
            return
        gain = self._gains.get(sequence.id, self._gain)
        self._gains[sequence.id] = gain = gain + 0.1 * (accepted - gain)
        self._gain += 0.02 * (gain - self._gain)
        # The guess behind the first wrong one says nothing.
        tried = min(drafted, accepted + 1)
        rate = self._rates.get(sequence.id, self._rate)
        for place in range(tried):
            rate += 0.15 * ((1.0 if place < accepted else 0.0) - rate)
        self._rates[sequence.id] = rate
        self._rate += 0.01 * (rate - self._rate)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._rates.pop(sequence.id, None)
        self._gains.pop(sequence.id, None)
        self._catch_up.ended(sequence)

    def _worthwhile(self, size: int, odds: np.ndarray, widest: np.ndarray) -> int:
        """How many guesses make the most tokens a second; 0 for none.

        Args:
            odds: (n,) of all guesses, falling.
            widest: (n,) guesses of the row with the most, up to each of them.
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

    def _best(self, willing: Items[Sequence], size: int, plain: float) -> tuple[int, float, float]:
        """The best number of guesses a row, the seconds of that step and its tokens."""
        if self.is_free:
            gained = sum(self._gains.get(s.id, self._gain) for s in willing)
            work = np.array([self.costs.work_each * len(willing)])
            return self.ceiling, float(self.costs.guessing(size, work, plain)[0]), size + gained
        rates = np.array([self._rates.get(s.id, self._rate) for s in willing])
        lengths = np.arange(1, self.ceiling + 1)
        costs = self.costs.guessing(size, lengths * float(len(willing)), plain)
        # Of n guesses, each with this rate, those before the first wrong one are accepted.
        tokens = size + (rates[:, None] ** lengths).sum(axis=0).cumsum()
        best = int((costs / tokens).argmin())
        return best + 1, float(costs[best]), float(tokens[best])

    def _may_try(self, size: int) -> bool:
        """Not again and again where guessing steps are never alone to be measured."""
        return self.costs.knows_guessing(size) or self._tries.get(bucket(size), 0) < _MOST_TRIES
