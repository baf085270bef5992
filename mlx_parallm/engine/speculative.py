"""Speculation: cheap guesses of the next tokens, verified in one forward.

A guess is accepted where it is the very token that plain decoding would have
sampled at that position: the sampler draws with (seed, position), so the output
is plain decoding's, token for token, whatever was guessed and however many. With
a deterministic guess this accepts exactly as often as rejection sampling
(Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318), since both
accept token x with the probability that the target gives it.

The LengthController decides how far to guess, step by step: the measured time of
a forward of 1, 2, ... tokens at this batch size against the tokens that the rows'
acceptance so far promises. Where it does not pay, nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

import numpy as np

from mlx_parallm.engine.drafter import Proposal
from mlx_parallm.engine.sequence import Sequence

_DECAY = 0.9  # of the running averages
_MARGIN = 1.02  # guessing must promise this much more than plain decoding
_SPARE_SHARE = 0.015  # of the time of plain steps goes into looking whether guessing pays
_MOST_TRIES = 4  # of a length whose time is not known
_HOPED = 0.05  # time of one more guess, in plain steps, before any was measured
_PREFILL = 0.1  # time of a token that a drafter catches up, in a row's plain step, likewise
_WAITED = -1  # instead of a length: a plain step that waited for the one before
_ANY = -2  # instead of a length: all steps that waited, whatever they guessed


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
class _Cost:
    """Running average of a step's seconds, and how often it was measured."""

    seconds: float = 0.0
    count: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        if self.count <= 3:  # the first ones include allocation and tracing
            self.seconds = seconds if self.count == 1 else min(self.seconds, seconds)
        else:
            # Slow steps are mostly other processes' doing.
            seconds = min(seconds, 2 * self.seconds)
            self.seconds += (1 - _DECAY) * (seconds - self.seconds)


@dataclass(slots=True)
class _CatchUp:
    """What it costs a drafter to compute the tokens that it did not guess itself.

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
    """

    ceiling: int
    is_free: bool = False
    stats: SpeculativeStats = field(default_factory=SpeculativeStats)
    _costs: dict[tuple[int, int], _Cost] = field(default_factory=dict)
    _tries: dict[tuple[int, int], int] = field(default_factory=dict)
    _rates: dict[int, float] = field(default_factory=dict)
    _gains: dict[int, float] = field(default_factory=dict)
    _catch_up: _CatchUp = field(default_factory=_CatchUp)
    _rate: float = 0.7
    _gain: float = 1.0
    _spare: float = 0.0

    def choose(self, sequences: Items[Sequence], lag: int = 0) -> int:
        """Guesses for this step at most, 0 where plain decoding is faster.

        lag: tokens that the drafter has to compute before it can guess.
        """
        willing = [s for s in sequences if s.params.speculative is not False]
        size, plain = len(sequences), self._cost(len(sequences), 0)
        if not willing or not self.ceiling or plain is None:
            return self._decide(0)  # the plain step is measured first
        length, cost, each = self._best(willing, size, plain)
        if plain / size > _MARGIN * each:
            return self._decide(length)
        self._spare += _SPARE_SHARE * plain
        catch_up = self._catch_up.seconds or _PREFILL * plain / size
        price = max(cost - plain, 0.0) + lag * catch_up
        if self._spare < price:
            return self._decide(0)
        self._spare -= price
        return self._decide(length)

    def narrow(self, proposal: Proposal) -> int:
        """How many of the guesses of a free drafter to verify; 0 for none."""
        most = int(proposal.counts.max(initial=0))
        if proposal.odds is None or not most:
            return most
        size = len(proposal.counts)
        plain = self._cost(size, 0) or 1.0
        best, best_rate = 0, size / (self._cost(size, _WAITED) or plain)
        gained = np.cumsum(proposal.odds.sum(axis=0))
        for length in range(1, most + 1):
            rate = (size + float(gained[length - 1])) / self._estimate(size, length, plain)
            if rate > best_rate:
                best, best_rate = length, rate
        if best:
            self._try(size, best)
        return best

    def measured(self, size: int, length: int, seconds: float, *, waited: bool) -> None:
        """A step of `size` rows that guessed `length` tokens took so long.

        waited: it was launched after the step before was read.
        """
        if waited:
            self._add_cost(size, length or _WAITED, seconds)
            self._add_cost(size, _ANY, seconds)
        else:
            self._add_cost(size, length, seconds)

    def caught_up(self, tokens: int, seconds: float) -> None:
        """The drafter computed tokens that it had not guessed."""
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

    def _best(self, willing: Items[Sequence], size: int, plain: float) -> tuple[int, float, float]:
        """The best number of guesses, the seconds of that step and those of a token."""
        if self.is_free:
            gained = sum(self._gains.get(s.id, self._gain) for s in willing)
            cost = self._cost(size, _ANY) or plain
            return self.ceiling, cost, cost / (size + gained)
        rates = [self._rates.get(s.id, self._rate) for s in willing]
        best, best_cost, best_each = 1, plain, float("inf")
        for length in range(1, self.ceiling + 1):
            gained = sum(_expected(rate, length) for rate in rates)
            cost = self._estimate(size, length, plain)
            if cost / (size + gained) < best_each:
                best, best_cost, best_each = length, cost, cost / (size + gained)
        self._try(size, best)
        return best, best_cost, best_each + self._catch_up.per_token

    def _estimate(self, size: int, length: int, plain: float) -> float:
        """Seconds of a step: measured, or from its neighbours, or hopeful where there is none.

        A step with more guesses takes no less time, so one measurement says much
        about the lengths around it; each is tried only while it may be the best.
        """
        known = self._cost(size, length)
        if known is not None:
            return known
        if self._tries.get((_bucket(size), length), 0) >= _MOST_TRIES:
            return float("inf")  # its steps were never alone to be measured
        below, above = (0, plain), None
        for other in range(1, self.ceiling + 1):
            cost = self._cost(size, other)
            if cost is not None and other < length:
                below = (other, cost)
            elif cost is not None and above is None:
                above = (other, cost)
        if above is None:
            return below[1] + _HOPED * plain * (length - below[0])
        share = (length - below[0]) / (above[0] - below[0])
        return below[1] + share * (above[1] - below[1])

    def _try(self, size: int, length: int) -> None:
        if self._cost(size, length) is None:
            key = (_bucket(size), length)
            self._tries[key] = self._tries.get(key, 0) + 1

    def _decide(self, length: int) -> int:
        self.stats.current_length = length
        self.stats.off_steps += not length
        return length

    def _add_cost(self, size: int, length: int, seconds: float) -> None:
        self._costs.setdefault((_bucket(size), length), _Cost()).add(seconds)

    def _cost(self, size: int, length: int) -> float | None:
        cost = self._costs.get((_bucket(size), length))
        # The first one of a shape includes allocation and tracing.
        return cost.seconds if cost is not None and cost.count >= 2 else None


def _bucket(size: int) -> int:
    return 1 << max(0, size - 1).bit_length()


def _expected(rate: float, length: int) -> float:
    """Guesses of `length` that are accepted on average, each with this rate."""
    return sum(rate**place for place in range(1, length + 1))
