"""The events: requests reach the router, replicas end their steps."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from benchlib.table import percentile

from .replica import Machine, Replica, Request
from .routing import Routing

_HOUR_S = 3600.0


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        seconds: until the last answer.
        requests: in the order in which they were answered.
    """

    replicas: int
    seconds: float
    requests: Sequence[Request]

    @property
    def hit_rate(self) -> float:
        """Prompt tokens found cached, of all."""
        asked = sum(request.prompt for request in self.requests)
        return sum(request.cached for request in self.requests) / asked

    def first_token(self, share: float) -> float:
        """Seconds to the first token that this share of the requests does not exceed."""
        found = percentile([request.first - request.sent for request in self.requests], share)
        assert found is not None
        return found

    @property
    def tokens_per_second(self) -> float:
        """Of all answers."""
        return sum(request.output for request in self.requests) / self.seconds

    def cost_of_million(self, an_hour: float) -> float:
        """Price of a million tokens of answers where a replica costs so much an hour."""
        return self.replicas * an_hour / _HOUR_S / self.tokens_per_second * 1e6


def simulate(
    machine: Machine,
    replicas: int,
    routing: Callable[[Sequence[Replica]], Routing],
    requests: Iterable[Request],
    *,
    clients: int = 0,
    arrivals: Iterable[float] = (),
    router_s: float = 0.0,
) -> Result:
    """Run requests through a fleet.

    Args:
        clients: so many that each send the next request when their last one is answered.
        arrivals: seconds at which requests are sent, instead of clients.
        router_s: seconds that the router needs for a request, one after the other.
    """
    fleet = _Fleet(machine, replicas, routing, iter(requests), router_s)
    due = arrivals if not clients else itertools.repeat(0.0, clients)
    return fleet.run(due, closed=bool(clients))


class _Fleet:
    def __init__(
        self,
        machine: Machine,
        replicas: int,
        routing: Callable[[Sequence[Replica]], Routing],
        requests: Iterator[Request],
        router_s: float,
    ) -> None:
        self._replicas = [Replica(machine) for _ in range(replicas)]
        self._routing = routing(self._replicas)
        self._requests = requests
        self._router_s = router_s
        self._router_free = 0.0
        self._events: list[tuple[float, int, Replica | Request]] = []
        self._numbers = itertools.count()
        self._in_flight = 0
        self._done: list[Request] = []

    def run(self, due: Iterable[float], closed: bool) -> Result:
        """Events in their order, until there are none."""
        for sent in due:
            self._send(sent)
        now = 0.0
        while self._events:
            now, _, who = heapq.heappop(self._events)
            if isinstance(who, Request):
                self._route(now, who)
                continue
            for request in who.end_step(now):
                self._in_flight -= 1
                self._done.append(request)
                if closed:
                    self._send(now)
            self._begin_step(now, who)
        return Result(len(self._replicas), now, self._done)

    def _send(self, now: float) -> None:
        """The next request goes to the router, which has it for a while."""
        request = next(self._requests, None)
        if request is None:
            return
        request.sent = now
        self._router_free = max(self._router_free, now) + self._router_s
        self._push(self._router_free, request)

    def _route(self, now: float, request: Request) -> None:
        replica = self._routing.choose(request, self._in_flight)
        self._in_flight += 1
        replica.take(request)
        if not replica.busy:
            self._begin_step(now, replica)

    def _begin_step(self, now: float, replica: Replica) -> None:
        replica.busy = replica.load > 0
        if replica.busy:
            self._push(now + replica.begin_step(), replica)

    def _push(self, when: float, who: Replica | Request) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), who))


def some_requests(
    count: int, prefixes: int, prompt: int, output: int, seed: int = 0
) -> Iterator[Request]:
    """Requests whose beginnings are drawn evenly from so many."""
    rng = random.Random(seed)
    for _ in range(count):
        yield Request(rng.randrange(prefixes), prompt, output)
