"""The socket that the server listens on."""

from __future__ import annotations

import socket

# Connections that the kernel holds until they are accepted.
BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a port in use is found before a model is loaded.

    The kernel queues connections until they are accepted.

    Raises:
        OSError: the address cannot be used.
    """
    # The protocol that getaddrinfo gives matters: asyncio turns Nagle's algorithm off only
    # where it says TCP, and with it on, small writes wait up to 40 ms.
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        # A server that was just stopped leaves its port in a waiting state.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def free_port_near(host: str, port: int, *, tries: int = 100) -> int | None:
    """The next port after `port` that could be listened on now; None where none was found."""
    for candidate in range(port + 1, min(port + 1 + tries, 65536)):
        try:
            listen(host, candidate).close()
        except OSError:
            continue
        return candidate
    return None
