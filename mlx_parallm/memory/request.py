"""What one request wants of its memories."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from mlx_parallm.memory.view import MemoryView, Position

Citations = Literal["none", "token", "span"]

DEFAULT_TOPK = 10


@dataclass(frozen=True, eq=False)
class MemoryRequest:
    """Memories that one sequence attends to, pinned: later versions do not change it.

    Attributes:
        view: what it attends to; made with the same `position`.
        topk: memories per query token and head; cut to how many there are.
        sim_threshold: memories with a cosine similarity up to this are left out.
        layers: those that attend to memories; None is all.
        local_offset: added to the positions of the sequence's own tokens.
        citations: whether to report what was used, by token or as spans.
        weights_digest: of the model's weights that they were made with; see LoadedModel.
    """

    view: MemoryView
    topk: int = DEFAULT_TOPK
    sim_threshold: float | None = None
    layers: frozenset[int] | None = None
    local_offset: int = 0
    citations: Citations = "none"
    weights_digest: str = ""

    @property
    def position(self) -> Position:
        """ "zero": memory keys are not rotated. "contiguous": they precede the sequence."""
        return self.view.position

    @property
    def shift(self) -> int:
        """The position of the sequence's first token."""
        before = self.view.size if self.position == "contiguous" else 0
        return before + self.local_offset

    @cached_property
    def group_key(self) -> Hashable:
        """Rows with equal keys are searched together."""
        cites = self.citations != "none"
        return (self.view.key, self.topk, self.sim_threshold, self.layers, cites)

    @cached_property
    def namespace(self) -> tuple[object, ...]:
        """All of it that changes a sequence's K and V; part of the prefix cache's key."""
        layers = None if self.layers is None else tuple(sorted(self.layers))
        return (
            "memory",
            *self.view.key,
            self.topk,
            self.sim_threshold,
            layers,
            self.local_offset,
        )

    def uses(self, layer: int) -> bool:
        """Whether the sequence attends to memories in this layer."""
        return self.layers is None or layer in self.layers
