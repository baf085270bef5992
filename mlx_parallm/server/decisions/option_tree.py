"""The options of one question as a tree of tokens, and the probabilities of its leaves.

Each inner node is one row: the prompt and the tokens down to the node, whose next token's
log-probabilities are read for the node's children. An option's log-probability is the sum along
its path (the chain rule), whatever number of tokens it has. Options that are one token each
make a tree with one row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Prefix = tuple[int, ...]


class OptionTree:
    """Args:
        options: each one's tokens, at least one. None may be the beginning of another.

    Raises:
        ValueError: two options cannot be told apart.
    """

    def __init__(self, options: Sequence[Prefix]) -> None:
        self.options = list(options)
        children: dict[Prefix, dict[int, None]] = {}
        for tokens in self.options:
            for place, token in enumerate(tokens):
                children.setdefault(tokens[:place], {})[token] = None
        if len(set(self.options)) < len(self.options) or set(self.options) & set(children):
            raise ValueError("an option is the same as another, or its beginning")
        self._children = {prefix: tuple(tokens) for prefix, tokens in children.items()}

    @property
    def rows(self) -> list[tuple[Prefix, tuple[int, ...]]]:
        """(tokens behind the prompt, tokens whose log-probabilities are needed), root first."""
        return sorted(self._children.items(), key=lambda row: (len(row[0]), row[0]))

    def logprobs(self, found: Mapping[Prefix, Mapping[int, float]]) -> list[float]:
        """Each option's log-probability.

        Args:
            found: what the rows gave, by their tokens behind the prompt.
        """
        return [
            math.fsum(found[tokens[:place]][token] for place, token in enumerate(tokens))
            for tokens in self.options
        ]


def probabilities(logprobs: Sequence[float]) -> list[float]:
    """The softmax over the options; where none is possible they are equally likely."""
    best = max(logprobs)
    if not math.isfinite(best):
        return [1 / len(logprobs)] * len(logprobs)
    weights = [math.exp(value - best) for value in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]
