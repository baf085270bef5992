"""How a router chooses a replica."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Protocol

from .replica import Replica, Request

# smg's gates: a replica is passed over where it has so many more requests than the others.
_SPILL_SHARE, _SPILL_REQUESTS = 1.5, 4


class Routing(Protocol):
    """A way to choose."""

    def choose(self, request: Request, in_flight: int) -> Replica:
        """The replica for a request; in_flight: requests of all replicas."""
        ...


class RoundRobin:
    """Each replica in turn."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._turns = itertools.cycle(replicas)

    def choose(self, request: Request, in_flight: int) -> Replica:
        """The next one."""
        return next(self._turns)


class PrefixAffine:
    """The replica that had the same beginning last, unless it has much more than others."""

    def __init__(self, replicas: Sequence[Replica], seed: int = 0) -> None:
        self._replicas = replicas
        self._homes: dict[int, Replica] = {}
        self._rng = random.Random(seed)

    def choose(self, request: Request, in_flight: int) -> Replica:
        """The home of its beginning; a new home where there is none."""
        mean = in_flight / len(self._replicas)
        home = self._homes.get(request.prefix)
        if home is None or home.load > max(_SPILL_SHARE * mean, mean + _SPILL_REQUESTS):
            home = self._homes[request.prefix] = self._emptier()
        return home

    def _emptier(self) -> Replica:
        """Of few replicas all are looked at, of many only some: that is nearly as good."""
        some = self._rng.sample(self._replicas, min(len(self._replicas), 8))
        return min(some, key=lambda replica: replica.load)


ROUTINGS = {"round robin": RoundRobin, "prefix-affine": PrefixAffine}
