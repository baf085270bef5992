"""The Gate: free text before what a grammar holds, such as thinking."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """Where a sequence is: before its first token, in free text, or behind it."""

    START = "start"
    FREE = "free"
    OPEN = "open"


@dataclass(frozen=True, slots=True)
class Gate:
    """Free text is allowed until the marker's tokens were said; then the grammar begins.

    Attributes:
        marker: token ids that end the free text, in this order.
        opener: where set, there is free text only if the answer begins with this token;
            otherwise the grammar begins at once. None: the prompt has opened it already.
        may_end: whether the answer may end before the marker.
        budget: tokens of free text after which the marker is forced.
    """

    marker: tuple[int, ...]
    opener: int | None = None
    may_end: bool = False
    budget: int | None = None

    @property
    def start(self) -> GateState:
        """The state before the first token."""
        return GateState(self, Phase.FREE if self.opener is None else Phase.START)


@dataclass(frozen=True, slots=True)
class GateState:
    """How far one sequence is at its gate.

    Attributes:
        said: tokens of free text so far.
        tail: the newest of them, as many as the marker has.
        forced: tokens of the marker that were forced so far.
    """

    gate: Gate
    phase: Phase
    said: int = 0
    tail: tuple[int, ...] = ()
    forced: int = 0

    @property
    def must_say(self) -> int | None:
        """The only token that is allowed next; None where there are more."""
        budget = self.gate.budget
        if self.phase is not Phase.FREE or budget is None or self.said < budget:
            return None
        return self.gate.marker[self.forced]

    def after(self, token: int) -> GateState:
        """The state behind one more token."""
        gate = self.gate
        if self.phase is Phase.START:
            return GateState(gate, Phase.FREE if token == gate.opener else Phase.OPEN)
        if self.phase is Phase.OPEN:
            return self
        tail = (*self.tail, token)[-len(gate.marker) :]
        forced = self.forced + (token == self.must_say)
        opens = tail == gate.marker or forced == len(gate.marker)
        phase = Phase.OPEN if opens else Phase.FREE
        return GateState(gate, phase, self.said + 1, tail, forced)
