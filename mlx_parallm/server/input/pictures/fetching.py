"""One GET of a picture or video over https: a pinned address, no redirects, time, size limits."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

import h11

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.server.input.data_urls import VIDEO, Kind
from mlx_parallm.server.input.pictures.hosts import (
    PORT,
    Resolve,
    Target,
    addresses_of,
    public_address,
    target_of,
)

_CHUNK = 64 * 1024
_MAX_HEAD = 32 * 1024
_OK = 200

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
# (address, host name) -> a TLS connection to the address whose certificate is the host's.
Connect = Callable[[str, str], Awaitable[Streams]]


async def _connect(address: str, host: str) -> Streams:
    return await asyncio.open_connection(
        address, PORT, ssl=ssl.create_default_context(), server_hostname=host
    )


class Fetcher:
    """Fetches pictures and videos from hosts that the operator has named.

    Args:
        hosts: their names.
        timeout_s: for all of it, from the first question to the last byte.
        resolve, connect: how; tests have others.
    """

    def __init__(
        self,
        hosts: Collection[str],
        timeout_s: float,
        resolve: Resolve = addresses_of,
        connect: Connect = _connect,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._timeout_s = timeout_s
        self._resolve, self._connect = resolve, connect

    async def fetch(self, url: str, kind: Kind, max_bytes: int, param: str) -> bytes:
        """What is at a URL.

        Args:
            kind: that it should be; max_bytes: that it may have.

        Raises:
            InvalidRequestError: it may not be fetched, or could not.
        """
        target = target_of(url, self._hosts, param)
        try:
            async with asyncio.timeout(self._timeout_s):
                address = public_address(await self._resolve(target.host), param)
                return await _Get(target, kind, max_bytes, param).answer(
                    await self._connect(address, target.host)
                )
        except TimeoutError:
            raise InvalidRequestError(
                f"The {kind.noun}'s host took longer than {self._timeout_s:g} s.", param=param
            ) from None
        except (OSError, h11.ProtocolError):
            raise InvalidRequestError(
                f"The {kind.noun} cannot be fetched from its host.", param=param
            ) from None


@dataclass(frozen=True, slots=True)
class _Get:
    """What is asked for, and how large it may be."""

    target: Target
    kind: Kind
    max_bytes: int
    param: str

    async def answer(self, streams: Streams) -> bytes:
        """The body of what a host answers."""
        reader, writer = streams
        try:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
            writer.write(_request(connection, self.target, self.kind))
            await writer.drain()
            return await self._body(connection, reader)
        finally:
            # Nothing is left to be said, and a host that does not say goodbye is not waited for.
            writer.transport.abort()

    async def _body(self, connection: h11.Connection, reader: asyncio.StreamReader) -> bytes:
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_CHUNK))
            elif isinstance(event, h11.Response):
                self._check(event)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self.max_bytes:
                    raise self.kind.too_large(self.max_bytes, self.param)
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            elif not isinstance(event, h11.InformationalResponse):
                raise ConnectionError("the answer ended early")

    def _check(self, response: h11.Response) -> None:
        if response.status_code != _OK:
            raise InvalidRequestError(
                f"The {self.kind.noun}'s host answered {response.status_code}; redirects are not "
                "followed.",
                param=self.param,
            )
        declared = dict(response.headers).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > self.max_bytes:
            raise self.kind.too_large(self.max_bytes, self.param)


def _request(connection: h11.Connection, target: Target, kind: Kind) -> bytes:
    headers = [
        ("Host", target.host),
        ("Accept", "video/*" if kind is VIDEO else "image/*"),
        ("Accept-Encoding", "identity"),
        ("User-Agent", "mlx_parallm"),
        ("Connection", "close"),
    ]
    request = h11.Request(method="GET", target=target.path, headers=headers)
    return connection.send(request) + connection.send(h11.EndOfMessage())
