"""All connections of a server: how many there may be, and which one is closed for a new one."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import Counter
from typing import Protocol

from uvicorn.server import ServerState

from mlx_parallm.server.gate.limits import ConnectionLimits
from mlx_parallm.server.gate.rare_log import OncePerMinute
from mlx_parallm.server.gate.read_pace import ReadPace

# One line a minute of each kind, whatever clients do.
logger = logging.getLogger("mlx_parallm.connections")
logger.addFilter(OncePerMinute())

# Above the limit: so many connections are answered (/health, and 503 for the rest).
_RESERVE = 64
_SWEEP_S = 0.5


class Connection(Protocol):
    """What the book needs of a connection; connection.py has it."""

    address: str

    def give_way(self) -> None:
        """Close, since another connection needs the room."""

    def check_time(self, now: float) -> None:
        """Close if it is overdue."""


class Connections(ServerState):
    """uvicorn's shared state, and the book of who is connected.

    A connection waits while no whole request of it is being answered. Where there is no room for
    a new one, the one that has waited longest is closed: idle sockets can never keep others out.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        super().__init__()
        self.limits = limits
        self.pace = ReadPace()
        self._addresses: Counter[str] = Counter()
        # Used as ordered sets, the longest waiting first.
        self._waiting: dict[Connection, None] = {}
        self._waiting_of: dict[str, dict[Connection, None]] = {}

    def enter(self, connection: Connection) -> bool:
        """Count a new connection, after room was made for it; whether there was room."""
        address, limits = connection.address, self.limits
        in_room = True
        if self._addresses[address] >= limits.most_per_address:
            in_room = self._give_way(self._waiting_of.get(address, {}))
        if in_room and self._addresses.total() >= limits.most:
            in_room = self._give_way(self._waiting)
        self._addresses[address] += 1
        self.set_waiting(connection, True)
        return in_room

    def has_reserve(self) -> bool:
        """Whether a connection for which there was no room can still be told so."""
        return self._addresses.total() <= self.limits.most + _RESERVE

    def leave(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        self.set_waiting(connection, False)
        self._addresses[connection.address] -= 1
        if self._addresses[connection.address] <= 0:
            del self._addresses[connection.address]

    def set_waiting(self, connection: Connection, waiting: bool) -> None:
        """Note whether a connection waits for its client."""
        self._waiting.pop(connection, None)
        same = self._waiting_of.setdefault(connection.address, {})
        same.pop(connection, None)
        if waiting:
            self._waiting[connection] = same[connection] = None
        elif not same:
            del self._waiting_of[connection.address]

    async def sweep(self) -> None:
        """Close what is overdue, for ever."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = asyncio.get_running_loop().time()
            for connection in list(self.connections):
                connection.check_time(now)  # type: ignore[union-attr]

    def _give_way(self, waiting: dict[Connection, None]) -> bool:
        oldest = next(iter(waiting), None)
        if oldest is None:
            return False
        logger.warning("too many connections: the one that waited longest gave way to a new one")
        self.leave(oldest)
        oldest.give_way()
        return True


def address_of(host: str) -> str:
    """What counts as one address: an IPv4 address, or an IPv6 network of /64."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host
