"""Generations by request id: while they run, and for a bounded time after."""

from __future__ import annotations

import time
from collections import OrderedDict

from mlx_parallm.server.flow.generation import Generation, Track

KEPT = 1024
KEPT_S = 600.0


def part_id(request_id: str, index: int) -> str:
    """The id of one text of a request with several."""
    return f"{request_id}-{index}"


class Registry:
    """Finds a generation by its request's id. An id that is used again means the newer one."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, Generation] = OrderedDict()

    def add(self, request_id: str, generation: Generation) -> None:
        """Remember a generation that was just submitted."""
        self._forget_old()
        self._entries.pop(request_id, None)
        self._entries[request_id] = generation

    def find(self, request_id: str) -> Generation | None:
        """The generation, or None where it is unknown or was forgotten."""
        self._forget_old()
        return self._entries.get(request_id)

    def find_part(self, id_of_part: str) -> tuple[Generation, Track] | None:
        """One text of a request with several, by its own id."""
        request_id = id_of_part.rpartition("-")[0]
        generation = self.find(request_id)
        if generation is None or len(generation.tracks) < 2:
            return None
        parts = {part_id(request_id, track.index): track for track in generation.tracks}
        track = parts.get(id_of_part)
        return None if track is None else (generation, track)

    def _forget_old(self) -> None:
        now = time.perf_counter()
        old = [
            request_id
            for request_id, generation in self._entries.items()
            if generation.ended_at is not None and now - generation.ended_at > KEPT_S
        ]
        ended = [key for key, one in self._entries.items() if one.ended and key not in old]
        for request_id in old + ended[: max(0, len(ended) - KEPT)]:
            del self._entries[request_id]
