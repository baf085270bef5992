"""The NgramDrafter: guesses without a model, from what was written before.

Two books are read: a sequence's own tokens, prompt included (Saxena, "Prompt Lookup
Decoding", 2023), and what all sequences of this server wrote so far (Oliaro et al.,
"SuffixDecoding", arXiv 2411.04975). How far either is to be believed is learned from
what became of earlier guesses. What is guessed changes the speed only, never a token.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

import numpy as np

from mlx_parallm.engine.drafter import Proposal
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.models.base import BatchedCache
from mlx_parallm.models.span import Row

_OWN_SIZES = (6, 4, 3, 2)
_SHARED_SIZES = (8, 5, 3)
_LONGEST = max(*_OWN_SIZES, *_SHARED_SIZES)
_LEARNING = 0.05  # of the belief in a kind of guess
_HOPELESS = 0.15  # a run of guesses ends when it is less likely than this
_MOST_HITS = 16  # what was seen long ago counts half

# (book, size of the n-gram, how sure the book is): what a guess's chance depends on.
Kind = tuple[str, int, int]
_OWN_KINDS: list[Kind] = [("own", size, 0) for size in _OWN_SIZES]


class NgramDrafter:
    """Looks up what followed the last few tokens before.

    Args:
        memory: n-grams of all sequences that are kept; the oldest go first.
    """

    caches: list[BatchedCache] = []  # noqa: RUF012  no model, no cache
    is_free = True

    def __init__(self, memory: int = 200_000) -> None:
        self._own: dict[int, OwnNgrams] = {}
        self._shared = SharedNgrams(memory)
        self._belief: dict[Kind, float] = {}
        self._asked: list[list[Kind]] = []

    def propose(self, sequences: list[Sequence], rows: list[Row], most: int) -> Proposal:
        """See Drafter."""
        guesses = np.zeros((len(sequences), most), dtype=np.int32)
        odds = np.zeros((len(sequences), most), dtype=np.float32)
        alive, asked = {}, []
        for place, sequence in enumerate(sequences):
            own = alive[sequence.id] = self._own.get(sequence.id) or OwnNgrams()
            self._read(own, sequence)
            kinds: list[Kind] = []
            found = self._guess(own, most, kinds)
            guesses[place, : len(found)] = [token for token, _ in found]
            odds[place, : len(found)] = [chance for _, chance in found]
            asked.append(kinds)
        self._own, self._asked = alive, asked
        return Proposal(guesses, np.array([len(kinds) for kinds in asked], np.int32), odds)

    def learn(self, verified: Items[int], accepted: Items[int]) -> None:
        """See Drafter."""
        for kinds, tried, right in zip(self._asked, verified, accepted, strict=True):
            # The guess behind the first wrong one says nothing.
            for place, kind in enumerate(kinds[: min(tried, right + 1)]):
                belief = self._believe(kind)
                self._belief[kind] = belief + _LEARNING * ((place < right) - belief)

    def reset(self) -> None:
        """See Drafter."""
        self._own, self._asked = {}, []

    def _read(self, own: OwnNgrams, sequence: Sequence) -> None:
        """Take in the tokens that are new."""
        known = len(own.tokens)
        own.extend(sequence.prompt, sequence.output)
        self._shared.extend(own.tokens, max(known, len(sequence.prompt)))

    def _guess(self, own: OwnNgrams, most: int, kinds: list[Kind]) -> list[tuple[int, float]]:
        """(token, chance that it and all before it are right), and the kind of each."""
        recent = tuple(own.tokens[-_LONGEST:])
        chance, found = 1.0, []
        for _ in range(most):
            token, kind = own.look_up(recent)
            sure = self._believe(kind) if kind is not None else 0.0
            other, other_kind = self._shared.look_up(recent)
            if other_kind is not None and (believed := self._believe(other_kind)) > sure:
                token, kind, sure = other, other_kind, believed
            chance *= sure
            if kind is None or chance < _HOPELESS:
                break
            found.append((token, chance))
            kinds.append(kind)
            recent = (*recent[1 - _LONGEST :], token)
        return found

    def _believe(self, kind: Kind) -> float:
        """Chance that a guess of this kind is right; a longer match is a better one."""
        found = self._belief.get(kind)
        return min(0.3 + 0.1 * kind[1], 0.8) if found is None else found


class OwnNgrams:
    """Where each n-gram of one growing sequence ended last."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self._last: dict[tuple[int, ...], int] = {}

    def extend(self, prompt: list[int], output: list[int]) -> None:
        """Take in new tokens; n-grams at the very end are not indexed yet."""
        known = len(self.tokens)
        if known < len(prompt):
            self.tokens += prompt[known:]
        self.tokens += output[max(0, len(self.tokens) - len(prompt)) :]
        tokens, last = self.tokens, self._last
        for end in range(max(1, known), len(tokens)):
            for size in _OWN_SIZES:
                if end >= size:
                    last[tuple(tokens[end - size : end])] = end

    def look_up(self, recent: tuple[int, ...]) -> tuple[int, Kind | None]:
        """The token that followed the longest known ending of `recent`, and its kind."""
        for kind in _OWN_KINDS:
            size = kind[1]
            end = self._last.get(recent[-size:]) if size <= len(recent) else None
            if end is not None:
                return self.tokens[end], kind
        return 0, None


@dataclass(slots=True)
class _Follower:
    """The token that mostly followed an n-gram, and how often it did and did not."""

    token: int
    hits: int = 1
    misses: int = 0

    def add(self, token: int) -> None:
        """Another token followed."""
        if token == self.token:
            self.hits += 1
        else:
            self.misses += 1
            if self.misses > self.hits:
                self.token, self.hits, self.misses = token, 1, 0
        if self.hits + self.misses > _MOST_HITS:
            self.hits, self.misses = self.hits // 2, self.misses // 2

    @property
    def sureness(self) -> int:
        """0 to 3."""
        if self.misses == 0:
            return 3 if self.hits > 1 else 2
        return 1 if self.hits > 2 * self.misses else 0


class SharedNgrams:
    """What followed each n-gram in all that was written."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._followers: dict[tuple[int, ...], _Follower] = {}

    def __len__(self) -> int:
        return len(self._followers)

    def extend(self, tokens: list[int], start: int) -> None:
        """Take in tokens[start:], each behind those before it."""
        followers = self._followers
        for place in range(start, len(tokens)):
            for size in _SHARED_SIZES:
                if place < size:
                    continue
                key = tuple(tokens[place - size : place])
                follower = followers.pop(key, None)
                if follower is None:
                    follower = _Follower(tokens[place])
                else:
                    follower.add(tokens[place])
                followers[key] = follower  # last in the order of age
        while len(followers) > self._memory:
            del followers[next(iter(followers))]

    def look_up(self, recent: tuple[int, ...]) -> tuple[int, Kind | None]:
        """The token that followed the longest known ending of `recent`, and its kind."""
        for size in _SHARED_SIZES:
            follower = self._followers.get(recent[-size:]) if size <= len(recent) else None
            if follower is not None:
                return follower.token, ("shared", size, follower.sureness)
        return 0, None
