"""Adapters that a replica reads when it is asked for them, and forgets when nobody uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ray import serve

if TYPE_CHECKING:
    from mlx_parallm.server.adapters import Adapters


class Held:
    """Tells when Ray lets an adapter go."""

    def __init__(self, let_go: Callable[[], None]) -> None:
        self._let_go = let_go

    def __del__(self) -> None:
        let_go, self._let_go = self._let_go, lambda: None
        let_go()


class HeldAdapters:
    """Ray knows which replica has which adapter, and lets the one go that was idle for longest.

    Args:
        adapters: the server's; asked for when there is a first request.
        folders: of each name.
        most: adapters that a replica has.
    """

    def __init__(
        self, adapters: Callable[[], Adapters], folders: Mapping[str, str], most: int
    ) -> None:
        self._adapters = adapters
        self._folders = folders
        self._uses: Counter[str] = Counter()
        self._let_go: set[str] = set()

        async def read(name: str) -> Held:
            self._let_go.discard(name)
            if name not in self._adapters():
                await self._adapters().add(name, self._folders[name])
            return Held(lambda: self._forget(name))

        self._read = serve.multiplexed(max_num_models_per_replica=most)(read)

    @asynccontextmanager
    async def using(self, name: str) -> AsyncIterator[None]:
        """Keep an adapter here for the time of a request.

        Raises:
            NotFoundError, InvalidRequestError: it cannot be read.
        """
        self._uses[name] += 1
        try:
            await self._read(name)
            yield
        finally:
            self._uses[name] -= 1
            if name in self._let_go:
                self._forget(name)

    def _forget(self, name: str) -> None:
        if self._uses[name]:
            self._let_go.add(name)
            return
        self._let_go.discard(name)
        if name in self._adapters():
            self._adapters().remove(name)
