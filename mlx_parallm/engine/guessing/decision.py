"""Whether the next step guesses, how far, and why: a pure function of what was measured.

What is measured, and the state that goes from step to step, is in length_controller.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

LOOK_STEPS = 8  # in a row: the first ones after a change are slower than those to come
MOST_TRIES = 2 * LOOK_STEPS  # guessing steps at a batch size, before any of it was measured
_MARGIN = 1.02  # guessing must promise this much more than plain decoding
_SPARE_SHARE = 0.015  # of the time of steps may be lost in looks
_FEARED = 2.5  # time of a guessing step, in plain steps, before any was measured


class Reason(StrEnum):
    """Why a step guesses, or decodes plainly."""

    OFF = "off"  # speculation is paused
    NOBODY_WANTS_IT = "nobody_wants_it"  # every row has use_speculative: false
    UNMEASURED = "unmeasured"  # the time of a plain step is not known yet
    NEVER_ALONE = "never_alone"  # guessing was tried, but other work ran in all of its steps
    PAYS = "pays"  # guessing gives more tokens a second
    DOES_NOT_PAY = "does_not_pay"  # plain decoding does
    LOOK = "look"  # guessing, to measure it where it seems not to pay
    PLAIN_LOOK = "plain_look"  # plain decoding, to measure it where guessing pays


class Decision(NamedTuple):
    """Guesses a row at most, 0 for a plain step; and why."""

    length: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Promise:
    """The best that guessing offers for a step.

    Attributes:
        length: guesses a row.
        seconds: time of the step.
        tokens: what it gives to all rows together.
    """

    length: int
    seconds: float
    tokens: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known when a step is planned. Times in seconds.

    Attributes:
        rows: of the step; willing: those of them that want guesses.
        ceiling: guesses a row at most, 0 while speculation is paused.
        plain_seconds: time of a plain step, None before one was measured.
        promise: what guessing offers; None where nobody wants it, or nothing was measured.
        is_measured: whether guessing steps of this batch size were measured.
        tries: guessing steps of this batch size so far.
        catch_up_seconds: time that the drafter needs before its first guess.
        plain_run: plain steps since the last decision.
        look_left: steps of guessing that are left of the look that goes on.
        look_budget: seconds that looks may lose, None before the first look, which is free.
    """

    rows: int
    willing: int
    ceiling: int
    plain_seconds: float | None
    promise: Promise | None = None
    is_measured: bool = False
    tries: int = 0
    catch_up_seconds: float = 0.0
    plain_run: int = 0
    look_left: int = 0
    look_budget: float | None = None


def decide(now: Snapshot) -> Decision:
    """Whether to guess in the next step."""
    excluded = _excluded(now)
    if excluded is not None:
        return Decision(0, excluded)
    assert now.promise is not None
    if pays(now):
        if _can_afford_look(now):
            return Decision(0, Reason.PLAIN_LOOK)
        return Decision(now.promise.length, Reason.PAYS)
    if now.look_left or now.look_budget is None or _can_afford_look(now):
        return Decision(now.promise.length, Reason.LOOK)
    return Decision(0, Reason.DOES_NOT_PAY)


def pays(now: Snapshot) -> bool:
    """Whether guessing, as measured, gives more tokens a second than plain decoding."""
    if now.promise is None or not now.is_measured:
        return False
    return _as_plain_steps(now, now.promise) > _MARGIN * now.promise.seconds


def budget_after(now: Snapshot, decision: Decision) -> float | None:
    """What looks may lose after this decision, in seconds; see Snapshot.look_budget."""
    if _excluded(now) is not None or (now.look_left and not pays(now)):
        return now.look_budget
    if decision.reason is Reason.LOOK and now.look_budget is None:
        return 0.0
    looks = decision.reason in (Reason.LOOK, Reason.PLAIN_LOOK)
    return _funds(now) - (_price_of_look(now) if looks else 0.0)


def _excluded(now: Snapshot) -> Reason | None:
    """Why guessing is out of the question, None where it is not."""
    if not now.ceiling:
        return Reason.OFF
    if not now.willing:
        return Reason.NOBODY_WANTS_IT
    if now.plain_seconds is None or now.promise is None:
        return Reason.UNMEASURED
    if not now.is_measured and now.tries >= MOST_TRIES:
        return Reason.NEVER_ALONE
    return None


def _can_afford_look(now: Snapshot) -> bool:
    return _funds(now) >= _price_of_look(now)


def _funds(now: Snapshot) -> float:
    """The budget, with the share of the newest steps paid in."""
    assert now.promise is not None
    plain = now.plain_seconds or 0.0
    spent = now.promise.seconds if pays(now) else plain * now.plain_run
    return (now.look_budget or 0.0) + _SPARE_SHARE * spent


def _price_of_look(now: Snapshot) -> float:
    """Seconds that a look is expected to lose."""
    assert now.promise is not None and now.plain_seconds is not None
    if pays(now):
        gained = now.promise.seconds * now.rows / now.promise.tokens
        return LOOK_STEPS * (now.plain_seconds - gained)
    seconds = now.promise.seconds
    if not now.is_measured:
        seconds = max(seconds, _FEARED * now.plain_seconds)
    lost = max(0.0, seconds - _as_plain_steps(now, now.promise))
    return LOOK_STEPS * lost + now.catch_up_seconds


def _as_plain_steps(now: Snapshot, promise: Promise) -> float:
    """Seconds that plain decoding needs for the promised tokens."""
    return promise.tokens / now.rows * (now.plain_seconds or 0.0)
