"""From which URLs pictures and videos may be fetched, and at which addresses: public ones only."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from mlx_parallm.errors import InvalidRequestError

PORT = 443
_MAX_URL = 2048
# Beside what ipaddress knows: those that stand for an IPv4 address (NAT64, RFC 6052 and 8215;
# 6to4's relays), and those of protocols, which it knows in newer versions only.
_OTHERS = tuple(
    ipaddress.ip_network(net)
    for net in ("64:ff9b::/96", "64:ff9b:1::/48", "192.88.99.0/24", "192.0.0.0/24")
)

Resolve = Callable[[str], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class Target:
    """What to ask for, and whom. path: with the query."""

    host: str
    path: str


def target_of(url: str, allowed: Collection[str], param: str) -> Target:
    """The parts of a URL that may be fetched.

    Args:
        allowed: names of hosts, in small letters.

    Raises:
        InvalidRequestError: not https, a host that is not allowed, or anything beside a host
            and a path in it: users, ports, other spellings.
    """
    if len(url) > _MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise InvalidRequestError(
            f"A URL has at most {_MAX_URL} printable ASCII characters.", param=param
        )
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise InvalidRequestError("The URL cannot be read.", param=param) from None
    if parts.scheme != "https":
        raise InvalidRequestError(_only_data(allowed, parts.scheme), param=param)
    host = (parts.hostname or "").lower()
    # Backslashes are slashes to some programs, and no part of any host here.
    if "@" in parts.netloc or "\\" in url or port not in (None, PORT):
        raise InvalidRequestError(
            "A URL names a host only, without a user and without a port.", param=param
        )
    if host not in allowed:
        raise InvalidRequestError(_only_hosts(allowed, host), param=param)
    path = parts.path or "/"
    return Target(host, f"{path}?{parts.query}" if parts.query else path)


def _only_data(allowed: Collection[str], scheme: str) -> str:
    ways = "data: and https:" if allowed else "data:"
    return (
        f"Pictures and videos are taken from {ways} URLs, not from {scheme[:20]!r}; the server "
        "opens no files."
    )


def _only_hosts(allowed: Collection[str], host: str) -> str:
    if not allowed:
        return (
            "This server fetches no pictures and videos; send them as data: URLs, or start it with "
            "--allow-image-hosts."
        )
    return f"This server fetches nothing from {host[:100]!r} (--allow-image-hosts)."


async def addresses_of(host: str) -> list[str]:
    """What the system's resolver says.

    Raises:
        OSError: nothing.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, PORT, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def public_address(addresses: Iterable[str], param: str) -> str:
    """The one to connect to.

    Raises:
        InvalidRequestError: any of them is not of the public internet: who can say that the
            host is here can also say that it is there.
    """
    found = list(addresses)
    if not found or not all(map(is_public, found)):
        raise InvalidRequestError(
            "The host has an address that is not public; it is not asked.", param=param
        )
    return found[0]


def is_public(address: str) -> bool:
    """Whether it belongs to somebody out there, also as the IPv4 address in an IPv6 one."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if inner is not None or found.teredo is not None:
            return False
    if any(found in net for net in _OTHERS):
        return False
    return found.is_global and not found.is_multicast and not found.is_reserved
