"""The Constraint: what one sequence may still say."""

from __future__ import annotations

from collections.abc import Sequence as Items

from llguidance import LLMatcher

from mlx_parallm.engine.grammar.gate import Gate, GateState, Phase
from mlx_parallm.engine.grammar.grammar import Grammar


class Constraint:
    """Follows one sequence's output. It takes what has entered the output and nothing else,
    so that a sequence that is computed again needs nothing from it.

    Args:
        matcher: at the beginning of its grammar; None allows everything behind the gate.
        gate: free text that may come before.
        grammar: that the matcher was compiled from.

    Attributes:
        error: why the grammar cannot be followed any further; None where it can.
    """

    __slots__ = ("_gate", "error", "first_gate", "grammar", "matcher")

    def __init__(
        self, matcher: LLMatcher | None, gate: Gate | None = None, grammar: Grammar | None = None
    ) -> None:
        self.matcher = matcher
        self.grammar = grammar
        self.first_gate = gate
        self.error: str | None = None
        self._gate: GateState | None = None if gate is None else gate.start

    def copy(self) -> Constraint:
        """Another sequence's, in the same state."""
        matcher = None if self.matcher is None else self.matcher.deep_copy()
        other = Constraint(matcher, self.first_gate, self.grammar)
        other._gate, other.error = self._gate, self.error
        return other

    @property
    def gate(self) -> GateState | None:
        """The state at the gate; None where there is none, or no more."""
        return self._gate

    @property
    def holds(self) -> bool:
        """Whether something is forbidden in the next token."""
        return not self.done and (self.matcher is not None or self._gate is not None)

    @property
    def done(self) -> bool:
        """Whether the sequence has said all that the grammar allows, or cannot go on."""
        if self.error is not None:
            return True
        return self._gate is None and self.matcher is not None and self.matcher.is_stopped()

    def take(self, token: int) -> None:
        """The sequence has said one more token."""
        if self.error is not None:
            return
        if self._gate is not None:
            began = self._gate.phase
            self._gate = self._gate.after(token)
            if self._gate.phase is Phase.OPEN:
                self._gate = None
            if self._gate is not None or began is Phase.FREE:
                return
        if self.matcher is not None and not self.matcher.consume_token(token):
            self.fail(self.matcher.get_error())

    def fail(self, reason: str) -> None:
        """The grammar cannot be followed any further."""
        self.error = reason

    def forced(self) -> list[int]:
        """The next tokens, as far as they are likely: what has to come, as it is mostly written.

        The text has to come; the tokens may be other ones.
        """
        if self._gate is not None:
            return [] if self._gate.must_say is None else [self._gate.must_say]
        if self.matcher is None or self.done:
            return []
        return list(self.matcher.compute_ff_tokens())

    def allowed(self, guesses: Items[int]) -> int:
        """How many of these tokens, said one after the other, are allowed."""
        state, first = self._gate, 0
        while state is not None and first < len(guesses):
            if state.must_say not in (None, guesses[first]):
                return first
            began, state = state.phase, state.after(guesses[first])
            if state.phase is Phase.OPEN:
                # What begins without the opener is the grammar's own already.
                first += began is Phase.FREE
                break
            first += 1
        if self.matcher is None or first == len(guesses) or self.error is not None:
            return len(guesses)
        return first + int(self.matcher.validate_tokens(list(guesses[first:])))
