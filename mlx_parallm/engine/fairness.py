"""Who of several clients is served next: the one that was served least. No mlx here.

Each client has a counter of the tokens that it was served, divided by its weight (virtual token
counters; Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). A token of an
answer counts as two of a prompt. Who comes back after a pause starts just before the others: time
in which a client asked for nothing is not owed to it, nor is time held against it in which nobody
else asked.

A client of whom no row decodes has its prompts computed before those of others: it waits for its
first token, they for one among many.

A request's `priority` orders a client's own requests. Towards other clients it can only make a
request wait (above 0), never pass theirs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Items

from mlx_parallm.engine.client import Client
from mlx_parallm.engine.sequence import Sequence

_OUTPUT_TOKEN = 2.0
_FEW_STEPS = 8
Turn = tuple[int, float, int, float, int]


class Shares:
    """What every client was served so far."""

    def __init__(self) -> None:
        self._served: dict[Client | None, float] = {}

    def welcome(
        self, client: Client | None, served: Items[Client | None], waiting: Items[Client | None]
    ) -> None:
        """A client asks for something, and has neither a row nor a sequence that waits for one.

        Args:
            served: the clients of the rows; waiting: those that wait.
        """
        if not (served or waiting):
            self._served.clear()  # nobody has to catch up with anybody
        least = min((self._served.get(other, 0.0) for other in served or waiting), default=0.0)
        least -= bool(served)  # by a token before those that have rows already
        self._served[client] = max(self._served.get(client, least), least)

    def charge_prompt(self, client: Client | None, tokens: float) -> None:
        """Prompt tokens, or what counts as so many, are computed for a client."""
        self._charge(client, tokens)

    def charge_output(self, client: Client | None, tokens: int) -> None:
        """A client got tokens of answers."""
        self._charge(client, tokens * _OUTPUT_TOKEN)

    def _charge(self, client: Client | None, cost: float) -> None:
        weight = 1.0 if client is None else client.weight
        self._served[client] = self._served.get(client, 0.0) + cost / weight

    def turn(self, sequence: Sequence) -> Turn:
        """A key: the smaller, the sooner the sequence is served."""
        return (*self.turn_of_client(sequence), sequence.priority, sequence.arrival, sequence.id)

    def turn_of_client(self, first: Sequence) -> tuple[int, float]:
        """As turn(), between the first sequences of several clients."""
        return max(0, first.priority), self._served.get(first.client, 0.0)

    def victims(self, sequence: Sequence, rows: Items[Sequence]) -> list[Sequence]:
        """Rows that may be taken for a waiting sequence, the first ones first.

        All of higher `priority`; else one of the client with the most rows for its weight, where
        it has several and the waiting sequence's client has none.
        """
        lower = [row for row in rows if _yields(row, sequence)]
        if lower:
            return sorted(lower, key=self.turn, reverse=True)
        counts = Counter(row.client for row in rows)
        if sequence.client in counts or max(counts.values(), default=0) < 2:
            return []
        heaviest = max(counts, key=lambda c: counts[c] / (1.0 if c is None else c.weight))
        mine = [r for r in rows if r.client == heaviest and r.priority >= sequence.priority]
        if counts[heaviest] < 2 or not mine:
            return []
        # What was computed least is lost most cheaply.
        return [min(mine, key=lambda row: (len(row.output), -row.arrival))]


class Newcomers:
    """Clients that are served nothing yet, while others' rows decode."""

    def __init__(self) -> None:
        self._apart = False

    def first(
        self, behind: list[Sequence], decoding: list[Sequence], budget: int
    ) -> tuple[list[Sequence], list[Sequence]]:
        """Whose prompts a step computes, and which rows it leaves out.

        Where the newcomers' prompts take few steps, these compute no others'. Where they fit into
        one, and one client has most of the rows, it leaves the rows out, so that it is as short as
        alone; never twice in turn, so that nobody stands still.

        Args:
            behind: rows that wait for their prompts, in the order of their turns.
            decoding: rows that would decode.
            budget: prompt tokens of the step.

        Returns:
            (rows of `behind`, the first ones first; `decoding`, or nothing)
        """
        counts = Counter(sequence.client for sequence in decoding)
        new = [sequence for sequence in behind if sequence.client not in counts]
        was_apart, self._apart = self._apart, False
        if not decoding or not new:
            return behind, []
        tokens = sum(sequence.num_pending - 1 for sequence in new)
        if tokens > _FEW_STEPS * budget:
            return new + [sequence for sequence in behind if sequence.client in counts], []
        crowded = 2 * max(counts.values()) > len(decoding)
        self._apart = crowded and not was_apart and tokens <= budget
        return new, decoding if self._apart else []


def stands_behind(one: Sequence, other: Sequence) -> bool:
    """Whether one of two sequences of the same client is served after the other."""
    if one.client != other.client:
        return False
    return (one.priority, one.arrival, one.id) > (other.priority, other.arrival, other.id)


def _yields(row: Sequence, waiting: Sequence) -> bool:
    """Whether a row's priority lets the waiting sequence have its place."""
    if row.client == waiting.client:
        return row.priority > waiting.priority
    return max(0, row.priority) > max(0, waiting.priority)
