"""A replica as the simulation sees it: rows, a queue, steps, and prefixes that it keeps."""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class Request:
    """One request.

    Attributes:
        prefix: which beginning its prompt has, one of many of equal length.
        prompt: tokens of the whole prompt, beginning included; output: of its answer.
        sent, first: seconds; when it reached the router, and when its first token came.
        cached: tokens that were found.
        left: prompt tokens that are still to be computed.
    """

    prefix: int
    prompt: int
    output: int
    sent: float = 0.0
    first: float = 0.0
    cached: int = 0
    left: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """What all replicas are.

    Attributes:
        seconds: of a step, by its tokens.
        rows: sequences computed together.
        chunk: prompt tokens of a step, at most.
        prefix: tokens of a beginning.
        kept: beginnings that the prefix cache holds.
    """

    seconds: Sequence[float]
    rows: int
    chunk: int
    prefix: int
    kept: int


class Replica:
    """Steps of continuous batching: all decoding rows and a chunk of prompts in each."""

    def __init__(self, machine: Machine) -> None:
        self.load = 0
        self.busy = False
        self._machine = machine
        self._waiting: deque[Request] = deque()
        self._prompts: deque[Request] = deque()
        self._decoding: list[tuple[int, int, Request]] = []  # (last step, order, request)
        self._computing: list[Request] = []  # prompts whose last chunk is in this step
        self._prefixes: OrderedDict[int, None] = OrderedDict()
        self._step = 0
        self._order = 0

    def take(self, request: Request) -> None:
        """Put a request into the queue."""
        self.load += 1
        self._waiting.append(request)

    def begin_step(self) -> float:
        """Start the next step; how many seconds it takes."""
        while self._waiting and len(self._prompts) + len(self._decoding) < self._machine.rows:
            self._admit(self._waiting.popleft())
        room = self._machine.chunk
        while self._prompts and room:
            request = self._prompts[0]
            taken = min(room, request.left)
            room -= taken
            request.left -= taken
            if request.left == 0:
                self._computing.append(self._prompts.popleft())
        self._step += 1
        return self._machine.seconds[len(self._decoding) + self._machine.chunk - room]

    def end_step(self, now: float) -> list[Request]:
        """The requests that are answered with this step."""
        done = []
        for request in self._computing:
            request.first = now
            self._order += 1
            last = self._step + request.output - 1
            heapq.heappush(self._decoding, (last, self._order, request))
        self._computing.clear()
        while self._decoding and self._decoding[0][0] <= self._step:
            done.append(heapq.heappop(self._decoding)[2])
        self.load -= len(done)
        return done

    def _admit(self, request: Request) -> None:
        """Give it a row; what another prompt computes just now counts as found."""
        if request.prefix in self._prefixes:
            request.cached = min(self._machine.prefix, request.prompt - 1)
        self._prefixes[request.prefix] = None
        self._prefixes.move_to_end(request.prefix)
        if len(self._prefixes) > self._machine.kept:
            self._prefixes.popitem(last=False)
        request.left = request.prompt - request.cached
        self._prompts.append(request)
