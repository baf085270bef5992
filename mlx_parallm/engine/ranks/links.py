"""Connections between rank 0 and every other rank. No mlx here.

Each other rank has two: one on which the engines' threads speak in turn, and one for the pulse.
"""

from __future__ import annotations

import os
import secrets
import socket
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

_KEY_BYTES = 32
_USES = ("control", "pulse")


@dataclass(frozen=True, slots=True)
class Link:
    """Both connections to one other rank."""

    rank: int
    control: Connection
    pulse: Connection

    def close(self) -> None:
        """Say nothing more."""
        self.control.close()
        self.pulse.close()


class Door:
    """Where the other ranks find rank 0.

    Args:
        host: an address of this machine that they reach.
    """

    def __init__(self, host: str) -> None:
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._listener = Listener((host, 0), authkey=self._key)

    @property
    def address(self) -> bytes:
        """For `connect`: host, port and key. Whoever has it can join."""
        host, port = self._listener.address
        return f"{host} {port} {self._key.hex()}".encode()

    def wait_for(self, size: int) -> list[Link]:
        """Links to ranks 1 ... size - 1, once all have come."""
        found: dict[int, dict[str, Connection]] = {rank: {} for rank in range(1, size)}
        while any(len(two) < 2 for two in found.values()):
            try:
                connection = self._listener.accept()
            except AuthenticationError:
                continue  # somebody else
            rank, use = connection.recv()
            found[rank][use] = _without_delay(connection)
        self._listener.close()
        return [Link(rank, two["control"], two["pulse"]) for rank, two in found.items()]


def connect(address: bytes, rank: int) -> Link:
    """A link to rank 0, of which `address` is its door's."""
    host, port, key = address.decode().split()
    place = host, int(port)
    control, pulse = (_connect(place, bytes.fromhex(key), rank, use) for use in _USES)
    return Link(0, control, pulse)


def _connect(place: tuple[str, int], key: bytes, rank: int, use: str) -> Connection:
    connection: Connection[Any, Any] = Client(place, authkey=key)
    connection.send((rank, use))
    return _without_delay(connection)


def _without_delay(connection: Connection) -> Connection:
    """Small messages go out at once."""
    with socket.socket(fileno=os.dup(connection.fileno())) as copy:
        copy.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection
