"""Plan and SchedulerConfig: what one step does, and the bounds that it is planned within."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from mlx_parallm.cache.prefixes.prefix_contract import Match
from mlx_parallm.engine.sequence import Sequence
from mlx_parallm.engine.turns import EVERYTHING, Portion

# What a scheduler is given.
# Brings a prefix (namespace, tokens, at most so many) back from disk, before it is matched.
Restore = Callable[[tuple[object, ...], list[int], int], int]
# (sequence, running ones) -> whether its adapter is, or now was put, where forwards find it.
AdmitAdapter = Callable[[Sequence, Items[Sequence]], bool]
# (tokens that decode, rows that catch up, seconds of other work) -> prompt tokens of a step.
Budget = Callable[[int, int, float], int]
# Gives a running sequence those features of its pictures that are there.
Look = Callable[[Sequence], None]


@dataclass(slots=True)
class Plan:
    """One step's work, done in this order.

    Attributes:
        release: sequences whose rows are given back.
        admit: sequences that get a row.
        loads: (sequence, match): its row begins with a cached prefix, which is
            locked; whoever carries the plan out unlocks it.
        prefill: (sequence, tokens) to catch up.
        forks: (sequence, leader): gets a copy of the leader's row after prefill.
        decode: sequences that compute their last token and sample the next.
        complete: sequences that only wanted their prompt computed.
        predictions: (sequence, time steps) of plain networks, which need no row.
        moves: (sequence, portion): its row leaves this one for that of its sequence.
        portion: whose rows these are; see turns.py.
    """

    release: list[Sequence] = field(default_factory=list)
    admit: list[Sequence] = field(default_factory=list)
    loads: list[tuple[Sequence, Match]] = field(default_factory=list)
    prefill: list[tuple[Sequence, int]] = field(default_factory=list)
    forks: list[tuple[Sequence, Sequence]] = field(default_factory=list)
    decode: list[Sequence] = field(default_factory=list)
    complete: list[Sequence] = field(default_factory=list)
    predictions: list[tuple[Sequence, int]] = field(default_factory=list)
    moves: list[tuple[Sequence, Portion]] = field(default_factory=list)
    portion: Portion = EVERYTHING

    @property
    def computes(self) -> bool:
        """Whether there is a forward of the model to run."""
        return bool(self.prefill or self.decode)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do with the model and its rows."""
        return not (self.computes or self.release or self.admit or self.moves or self.complete)


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Bounds of the scheduler.

    Attributes:
        max_batch_size: rows at most.
        prefill_chunk: prompt tokens a step may catch up at most while others decode.
        idle_prefill_tokens: the same while nothing decodes.
        packs: forwards compute no padding; elsewhere a step's chunks are padded to the widest,
            and every row has as much memory as the longest.
        kv_tokens: tokens that the KV memory budget holds.
        kv_room: tokens that memory has room for now; None where that is not looked at.
        max_width: tokens a row may catch up in one forward.
        lookahead: tokens that a row may compute ahead of what it keeps.
        aligned: chunks end where pages do, since states are kept there only.
        shares_prefixes: a prompt that begins like one being computed waits for it.
    """

    max_batch_size: int = 32
    prefill_chunk: int = 256
    idle_prefill_tokens: int = 1024
    packs: bool = False
    kv_tokens: int = 1 << 40
    kv_room: int | None = None
    max_width: int = 480
    lookahead: int = 0
    aligned: bool = False
    shares_prefixes: bool = False

    @property
    def kv_most(self) -> int:
        """Tokens that rows may hold now."""
        return self.kv_tokens if self.kv_room is None else min(self.kv_tokens, self.kv_room)


def rectangle(lefts: list[int], budget: int, max_width: int) -> tuple[int, int]:
    """How many of the first rows to compute, and how wide.

    The fewest rows that fill three quarters of the budget, so that the first ones finish
    sooner; where no number of rows does, the one that fits the most tokens.
    """
    sizes = [(rows, min(budget // rows, max_width)) for rows in range(1, len(lefts) + 1)]
    filled = [sum(min(left, width) for left in lefts[:rows]) for rows, width in sizes]
    enough = min(max(filled, default=0), budget * 3 / 4)
    return next(
        (size for size, tokens in zip(sizes, filled, strict=True) if tokens >= enough), (0, 0)
    )


def common_pages(one: list[int], other: list[int], page: int) -> int:
    """Tokens of the common prefix, in whole pages."""
    most = min(len(one), len(other)) // page * page
    for at in range(0, most, page):
        if one[at : at + page] != other[at : at + page]:
            return at
    return most
