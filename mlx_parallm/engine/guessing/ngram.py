"""The NgramDrafter: guesses without a model, from what was written before.

There are two books, tables of what followed each n-gram. One holds a sequence's own
tokens, prompt included (Saxena, "Prompt Lookup Decoding", 2023), the other what all
sequences of this server wrote so far (Oliaro et al., "SuffixDecoding", arXiv 2411.04975).
Both are looked up with several contexts, as in compressors that mix contexts (Mahoney,
"Adaptive Weighing of Context Models", 2005): the last n tokens, or n tokens without the
newest ones, since what is said of one name is often said of the next.

How often the guesses of a context are right is learned, for each token separately: from
verified guesses, and in steps that guess nothing from the output of some sequences. Wrong
guesses cost time, but never change a token.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from mlx_parallm.cache.batch import BatchedCache
from mlx_parallm.engine.guessing.drafter import Proposal
from mlx_parallm.engine.sequence import Sequence


class Context(NamedTuple):
    """The key of a look-up: `size` tokens; the `skip` tokens after them are ignored."""

    shared: bool
    size: int
    skip: int = 0


# In the order of look-up, the most reliable ones first.
CONTEXTS = (
    Context(True, 10),
    Context(True, 6),
    Context(False, 5),
    Context(True, 4),
    Context(True, 3, 2),
    Context(False, 2),
    Context(True, 2),
    Context(False, 1),
    Context(True, 1),
)
_LONGEST = max(context.size + context.skip for context in CONTEXTS)
_SURE = 0.8  # a guess this likely ends the look-up
_HOPELESS = 0.15  # a run of guesses ends when it is less likely than this
_LEARNING = 0.05  # weight of the newest guess in the belief in a kind of guess
_LEARNING_TOKEN = 0.1  # the same for one token of that kind, at least
_MOST_HITS = 16  # counts are halved at this sum, so that old ones fade
_LEVELS = 4  # levels of how sure a book is
_MOST_AT_ONCE = 64  # newest tokens of a sequence that its book is made of
_SAMPLE = 8  # where nothing is guessed, one of so many sequences is read, to save time

Kind = int  # kind of a guess: its context, and how sure the book is
# OrderedDict finds its oldest entry in constant time; a dict first scans its deleted slots.
Table = OrderedDict[tuple[int, ...], "Follower"]


class NgramDrafter:
    """Guesses the tokens that followed the same few tokens earlier.

    Args:
        memory: entries of the shared book at most; the least recently used ones are dropped.
    """

    caches: list[BatchedCache] = []  # noqa: RUF012  no model, no cache
    is_free = True

    def __init__(self, memory: int = 200_000) -> None:
        self._beliefs = Beliefs(memory)
        self._shared = SharedNgrams(memory)
        self._own: dict[int, OwnNgrams] = {}
        self._read: dict[int, int] = {}  # tokens of each sequence's output in the shared book

    def lag(self, sequences: list[Sequence]) -> int:
        """See Drafter: tokens that are not in a sequence's own book."""
        books = [self._own.get(sequence.id) for sequence in sequences]
        known = sum(len(book.tokens) for book in books if book is not None)
        return sum(sequence.num_words for sequence in sequences) - known

    def propose(self, sequences: list[Sequence], most: int) -> Proposal:
        """See Drafter."""
        lag, began = self.lag(sequences), time.perf_counter()
        for sequence in sequences:
            if sequence.id not in self._own:
                self._own[sequence.id] = OwnNgrams(sequence.words)
            self._own[sequence.id].extend(sequence.output)
        seconds = time.perf_counter() - began
        guesses = np.zeros((len(sequences), most), dtype=np.int32)
        odds = np.zeros((len(sequences), most), dtype=np.float32)
        asked: list[list[tuple[Kind, int]]] = []
        for place, sequence in enumerate(sequences):
            found, chances = self._guess(sequence, most)
            guesses[place, : len(found)] = [token for _, token in found]
            odds[place, : len(found)] = chances
            asked.append(found)
        counts = np.array([len(found) for found in asked], dtype=np.int32)
        return Proposal(guesses, counts, odds, lag, seconds, asked=asked)

    def learn(self, proposal: Proposal, verified: Items[int], accepted: Items[int]) -> None:
        """See Drafter."""
        for asked, tried, right in zip(proposal.asked, verified, accepted, strict=True):
            # Guesses after the first wrong one tell nothing.
            for place, (kind, token) in enumerate(asked[: min(tried, right + 1)]):
                self._beliefs.learn(kind, token, right=place < right)

    def observe(self, sequences: list[Sequence], *, guessing: bool) -> None:
        """See Drafter: take in new tokens, of some sequences only where nothing is guessed."""
        for sequence in sequences:
            if guessing or sequence.id % _SAMPLE == 0:
                self._take_in(sequence, None if guessing else self._beliefs)

    def fork(self, sequence: Sequence, leader: Sequence) -> None:
        """See Drafter: its book is made when it is first asked for a guess."""

    def forget(self, sequence: Sequence) -> None:
        """See Drafter; the end of the sequence is read into the shared book too."""
        if sequence.id in self._read:
            self._take_in(sequence, None)
        self._own.pop(sequence.id, None)
        self._read.pop(sequence.id, None)

    def reset(self) -> None:
        """See Drafter."""
        self._own, self._read = {}, {}

    def _take_in(self, sequence: Sequence, beliefs: Beliefs | None) -> None:
        """Read the newest tokens of a sequence into the shared book."""
        written = len(sequence.output)
        read = max(self._read.get(sequence.id, 0), written - _MOST_AT_ONCE)
        first = len(sequence.prompt) + read
        start = max(0, first - _LONGEST)
        tokens = sequence.tokens_between(start, sequence.num_tokens)
        self._shared.extend(tokens, first - start, beliefs)
        self._read[sequence.id] = written

    def _guess(self, sequence: Sequence, most: int) -> tuple[list[tuple[Kind, int]], list[float]]:
        """(kind, token) of guesses, and of each the chance that it and all before it are right."""
        own, end = self._own[sequence.id], sequence.num_tokens
        recent = tuple(sequence.tokens_between(max(0, end - _LONGEST), end))
        found: list[tuple[Kind, int]] = []
        chances: list[float] = []
        chance = 1.0
        for _ in range(most):
            kind, token, belief = self._next(own, recent)
            chance *= belief
            if chance < _HOPELESS:
                break
            found.append((kind, token))
            chances.append(chance)
            recent = (*recent[1 - _LONGEST :], token)
        return found, chances

    def _next(self, own: OwnNgrams, recent: tuple[int, ...]) -> tuple[Kind, int, float]:
        """The kind and token of the best guess behind `recent`, and the belief in it."""
        best: tuple[Kind, int, float] = (0, 0, 0.0)
        for place, (shared, size, skip) in enumerate(CONTEXTS):
            if size + skip > len(recent):
                continue
            key = recent[-size:] if not skip else recent[-size - skip : -skip]
            if shared:
                follower = self._shared.tables[place].get(key)
                if follower is None:
                    continue
                kind, token = place * _LEVELS + follower.sureness, follower.token
            else:
                at = own.ends[place].get(key)
                if at is None:
                    continue
                kind, token = place * _LEVELS, own.tokens[at]
            belief = self._beliefs.of(kind, token)
            if belief > best[2]:
                best = (kind, token, belief)
                if belief > _SURE:
                    break
        return best


class OwnNgrams:
    """One growing sequence, and where each of its n-grams ended last.

    Args:
        prompt: its first tokens.

    Attributes:
        tokens: all that were taken in; num_output: how many of them are no prompt.
        ends: by context, n-gram -> index of the token after it.
    """

    def __init__(self, prompt: list[int]) -> None:
        self.tokens = list(prompt)
        self.num_output = 0
        self.ends: dict[int, dict[tuple[int, ...], int]] = {
            place: {} for place, context in enumerate(CONTEXTS) if not context.shared
        }
        self._index(1)

    def extend(self, output: list[int]) -> None:
        """Take in the tokens of the output that are new."""
        first = len(self.tokens)
        self.tokens += output[self.num_output :]
        self.num_output = len(output)
        self._index(first)

    def _index(self, first: int) -> None:
        tokens = self.tokens
        for place, ends in self.ends.items():
            size = CONTEXTS[place].size
            for end in range(max(first, size), len(tokens)):
                ends[tuple(tokens[end - size : end])] = end


@dataclass(slots=True)
class Follower:
    """The token that followed an n-gram most often: how often it did, and did not."""

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
    """What followed each n-gram in all that was written.

    Args:
        memory: followers that are kept at most, shared equally by the contexts.

    Attributes:
        tables: by context, n-gram -> Follower; those used last are last.
    """

    def __init__(self, memory: int) -> None:
        self.tables: dict[int, Table] = {
            place: OrderedDict() for place, context in enumerate(CONTEXTS) if context.shared
        }
        self._most = memory // len(self.tables)

    def __len__(self) -> int:
        return sum(map(len, self.tables.values()))

    def extend(self, tokens: list[int], first: int, beliefs: Beliefs | None = None) -> None:
        """Take in tokens[first:], each as the follower of the tokens before it.

        beliefs: updated with whether the book would have guessed each token.
        """
        for place, table in self.tables.items():
            _, size, skip = CONTEXTS[place]
            for end in range(max(first, size + skip), len(tokens)):
                key = tuple(tokens[end - size - skip : end - skip])
                token, follower = tokens[end], table.get(key)
                if follower is None:
                    table[key] = Follower(token)
                    continue
                if beliefs is not None:
                    kind = place * _LEVELS + follower.sureness
                    beliefs.learn(kind, follower.token, right=follower.token == token)
                follower.add(token)
                table.move_to_end(key)
            while len(table) > self._most:
                table.popitem(last=False)


@dataclass(slots=True)
class Belief:
    """The estimated chance that a guess is right, and how many guesses it rests on."""

    chance: float
    tried: int = 1

    def learn(self, right: bool) -> None:
        """One more guess was verified; early ones count more."""
        self.tried += 1
        self.chance += max(_LEARNING_TOKEN, 1 / (self.tried + 1)) * (right - self.chance)


@dataclass(slots=True)
class Beliefs:
    """Chances of guesses: of each kind, and of each token of a kind once it was tried.

    Attributes:
        memory: tokens' beliefs that are kept; the oldest go first.
    """

    memory: int
    _kinds: dict[Kind, float] = field(default_factory=dict)
    _tokens: OrderedDict[tuple[Kind, int], Belief] = field(default_factory=OrderedDict)

    def of(self, kind: Kind, token: int) -> float:
        """The chance of this token, guessed by this kind."""
        belief = self._tokens.get((kind, token))
        return self._of_kind(kind) if belief is None else belief.chance

    def learn(self, kind: Kind, token: int, *, right: bool) -> None:
        """What became of such a guess."""
        chance = self._of_kind(kind)
        belief = self._tokens.get((kind, token))
        if belief is None:
            belief = self._tokens[kind, token] = Belief(chance)
            if len(self._tokens) > self.memory:
                self._tokens.popitem(last=False)
        belief.learn(right)
        self._kinds[kind] = chance + _LEARNING * (right - chance)

    def _of_kind(self, kind: Kind) -> float:
        """Before anything is known, longer contexts are taken to be better."""
        found = self._kinds.get(kind)
        return min(0.3 + 0.1 * CONTEXTS[kind // _LEVELS].size, 0.8) if found is None else found
