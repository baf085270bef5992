"""How Ray Serve chooses a replica, and how many there are; No mlx here."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from ray.serve.config import AutoscalingContext
from ray.serve.request_router import (
    MultiplexMixin,
    PendingRequest,
    ReplicaID,
    RequestRouter,
    RunningReplica,
)

SEQUENCES = "sequences"  # the metric that the policy reads, of each replica

_BLOCK = 256  # characters
_MOST_BLOCKS = 1 << 17


class PrefixPlaces:
    """Which replica was given which beginning of a text, in whole blocks of characters."""

    def __init__(self) -> None:
        self._places: OrderedDict[int, ReplicaID] = OrderedDict()

    def find(self, text: str) -> ReplicaID | None:
        """The replica of the longest beginning that one was given; None where nobody was."""
        found = None
        for block in _blocks(text):
            place = self._places.get(block)
            if place is None:
                break
            self._places.move_to_end(block)
            found = place
        return found

    def put(self, text: str, place: ReplicaID) -> None:
        """Remember a text; those that were not asked for longest are forgotten."""
        for block in _blocks(text):
            self._places[block] = place
            self._places.move_to_end(block)
        while len(self._places) > _MOST_BLOCKS:
            self._places.popitem(last=False)

    def keep(self, places: set[ReplicaID]) -> None:
        """Forget what other replicas were given."""
        kept = ((block, place) for block, place in self._places.items() if place in places)
        self._places = OrderedDict(kept)

    def counts(self) -> Mapping[ReplicaID, int]:
        """Blocks of each replica."""
        counts: dict[ReplicaID, int] = {}
        for place in self._places.values():
            counts[place] = counts.get(place, 0) + 1
        return counts


def _blocks(text: str) -> Iterator[int]:
    """A hash of each beginning that ends with a block; of all of it where it is shorter."""
    so_far = 0
    for start in range(0, max(1, len(text) - _BLOCK + 1), _BLOCK):
        so_far = hash((so_far, text[start : start + _BLOCK]))
        yield so_far


class PrefixRouter(MultiplexMixin, RequestRouter):  # type: ignore[misc]  # not typed
    """The replica that was given the longest beginning of a prompt, then the least busy one.

    A replica that has as many requests as it may have refuses, and the next one is asked: a
    beginning that everybody shares does not end on one machine. The third argument of a call is
    the beginning of its prompt. With an adapter, replicas that have it come first.
    """

    def initialize_state(self, **_: Any) -> None:
        """Called by Ray once."""
        self._places = PrefixPlaces()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Called by Ray when replicas come or go."""
        super().update_replicas(replicas)
        self._places.keep({replica.replica_id for replica in replicas})

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Replicas in the order in which they are asked, each a rank of its own."""
        if pending_request is None:
            return [[replica] for replica in self._by_load(candidate_replicas)]
        pending_request.routing_context.should_backoff = True
        allowed = candidate_replicas
        if pending_request.metadata.multiplexed_model_id:
            ids = self.apply_multiplex_routing(pending_request)
            allowed = [one for one in allowed if one.replica_id in ids] or allowed
        place = self._places.find(_beginning_of(pending_request))
        ranked = self._by_load(allowed)
        ranked.sort(key=lambda replica: replica.replica_id != place)
        return [[replica] for replica in ranked]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Called by Ray when a replica has taken a request."""
        self._places.put(_beginning_of(pending_request), replica_id)

    def _by_load(self, replicas: list[RunningReplica]) -> list[RunningReplica]:
        """The least busy first; of equally busy ones that with fewest prefixes."""
        counts = self._places.counts()

        def load(replica: RunningReplica) -> tuple[int, int]:
            name = replica.replica_id
            return self.replica_queue_len_cache.get(name) or 0, counts.get(name, 0)

        return sorted(replicas, key=load)


def _beginning_of(request: PendingRequest) -> str:
    return str(request.args[2])


class SequencesPolicy:
    """As many replicas as have room for all sequences that are computed or wait.

    Args:
        rows: sequences that a replica computes together.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of replicas; Ray keeps it within its bounds and waits its delays."""
        told = (context.aggregated_metrics or {}).get(SEQUENCES) or {}
        wanted = math.ceil(sum(told.values()) / self._rows)
        bounds = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        return min(max(wanted, bounds[0]), bounds[1]), {}
