"""Masks of one step: which tokens each constrained row may say, behind 0, 1, ... guesses."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from collections.abc import Sequence as Items
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from llguidance import LLExecutor, LLMatcher
from llguidance.numpy import (
    fill_next_token_bitmask_par,
    fill_next_token_bitmask_par_with_draft_tokens,
)

from mlx_parallm.engine.grammar.constraint import Constraint
from mlx_parallm.engine.grammar.gate import GateState, Phase

_WORD = 32
_MAX_THREADS = 8


@dataclass(slots=True)
class Wanted:
    """The masks that one row wants: of its next token, and of the one behind each guess.

    Attributes:
        row: where the first of them belongs in the step's logits; the others follow.
        guesses: tokens that it may say next.
        ends: tokens that end the sequence; they are withheld from the first
        withheld: masks, as long as these allow any other token.
    """

    constraint: Constraint
    row: int
    guesses: list[int] = field(default_factory=list)
    ends: Iterable[int] = ()
    withheld: int = 0

    @property
    def size(self) -> int:
        """How many masks these are."""
        return len(self.guesses) + 1


@dataclass(slots=True)
class Masks:
    """Masks of some rows of a step's logits.

    Attributes:
        rows: (R,) int32, ascending.
        words: (R, W) uint32; bit b of word w is token 32 w + b, 1 where it is allowed.
        seconds: how long they took to make.
    """

    rows: np.ndarray
    words: np.ndarray
    seconds: float = 0.0


class MaskFiller:
    """Fills masks on threads of its own, one step at a time.

    Args:
        vocab_size: V, columns of the logits.
        end_token_ids: the model's own end tokens, which free text may not say.
    """

    def __init__(self, vocab_size: int, end_token_ids: Iterable[int]) -> None:
        self._words = -(-vocab_size // _WORD)
        self._ends = tuple(end_token_ids)
        self._executor: LLExecutor | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="masks")

    def start(self, wanted: Items[Wanted]) -> Future[Masks]:
        """Begin with one step's masks. The constraints must not change until they are there.

        A constraint that cannot be followed gets its `error`, and a first mask of ones.
        """
        return self._pool.submit(self.fill, wanted)

    def fill(self, wanted: Items[Wanted]) -> Masks:
        """One step's masks, at once; see `start`."""
        began = time.perf_counter()
        step = _Step(wanted, self._words, self._ends)
        if step.matchers:
            if self._executor is None:
                self._executor = LLExecutor(max(1, min(os.cpu_count() or 1, _MAX_THREADS)))
            step.fill(self._executor)
        step.finish()
        rows = [one.row + place for one in wanted for place in range(one.size)]
        words = step.masks.view(np.uint32)
        return Masks(np.array(rows, dtype=np.int32), words, time.perf_counter() - began)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A grammar that has begun: its masks lie from `first` on.

    A matcher that follows guesses is a copy. llguidance (1.9) takes guesses back, but keeps
    the mask behind the last one, and gives it again where another text leads to a place that
    looks the same to its lexer.
    """

    constraint: Constraint
    matcher: LLMatcher
    first: int
    guesses: list[int]


class _Step:
    """The masks of one step while they are made.

    Attributes:
        masks: (R, W) int32, those of each wish behind each other. What nobody writes is ones.
        matchers: grammars that have begun.
    """

    def __init__(self, wanted: Items[Wanted], words: int, ends: tuple[int, ...]) -> None:
        self.masks = np.full((sum(one.size for one in wanted), words), -1, dtype=np.int32)
        self.matchers: list[_Begun] = []
        self._ends = ends
        self._openers: list[tuple[int, int]] = []
        self._wanted: list[tuple[Wanted, int]] = []
        first = 0
        for one in wanted:
            self._wanted.append((one, first))
            self._walk(one, first)
            first += one.size

    def fill(self, executor: LLExecutor) -> None:
        """Let the grammars write their masks."""
        plain = [(one.matcher, one.first) for one in self.matchers if not one.guesses]
        ahead = [(one.matcher, one.first, one.guesses) for one in self.matchers if one.guesses]
        if plain:
            fill_next_token_bitmask_par(executor, plain, self.masks)
        if ahead:
            fill_next_token_bitmask_par_with_draft_tokens(executor, ahead, self.masks)

    def finish(self) -> None:
        """What is left to do when the grammars have written their masks."""
        for begun in self.matchers:
            self._check(begun)
        for row, token in self._openers:
            _set(self.masks[row], token)
        for one, first in self._wanted:
            for row in range(first, first + min(one.withheld, one.size)):
                self._withhold(row, one.ends)

    def _walk(self, one: Wanted, first: int) -> None:
        """Walk along the guesses, through the gate, to where the grammar begins."""
        constraint, guesses = one.constraint, one.guesses
        state, matcher = constraint.gate, constraint.matcher
        if state is not None and state.phase is Phase.START:
            assert state.gate.opener is not None
            if matcher is not None:
                self._openers.append((first, state.gate.opener))
            if not guesses or guesses[0] != state.gate.opener:
                state = None  # it begins here, or not within these guesses
            elif matcher is not None:
                self.matchers.append(_Begun(constraint, matcher.deep_copy(), first, []))
        place = 0
        while state is not None and state.phase is not Phase.OPEN and place < one.size:
            self._free(first + place, state)
            if place < len(guesses):
                state = state.after(guesses[place])
            place += 1
        if matcher is not None and place < one.size:
            rest = guesses[place:]
            follows = matcher.deep_copy() if rest else matcher
            self.matchers.append(_Begun(constraint, follows, first + place, rest))

    def _free(self, row: int, state: GateState) -> None:
        """The mask of free text."""
        if state.phase is Phase.START:
            return
        if state.must_say is not None:
            self.masks[row] = 0
            _set(self.masks[row], state.must_say)
        elif not state.gate.may_end:
            _clear(self.masks[row], self._ends)

    def _check(self, begun: _Begun) -> None:
        if begun.matcher.is_error():
            begun.constraint.fail(begun.matcher.get_error())
        elif not self.masks[begun.first].any():
            begun.constraint.fail("no token of the model's vocabulary is possible here")
        if begun.constraint.error is not None:
            self.masks[begun.first] = -1

    def _withhold(self, row: int, ends: Iterable[int]) -> None:
        others = self.masks[row].copy()
        _clear(others, ends)
        if others.any():
            self.masks[row] = others


def _set(mask: np.ndarray, token: int) -> None:
    mask.view(np.uint32)[token // _WORD] |= np.uint32(1 << token % _WORD)


def _clear(mask: np.ndarray, tokens: Iterable[int]) -> None:
    bits = mask.view(np.uint32)
    for token in tokens:
        if 0 <= token < len(bits) * _WORD:
            bits[token // _WORD] &= ~np.uint32(1 << token % _WORD)
