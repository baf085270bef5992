"""One GET of a picture over https: a pinned address, no redirects, a time limit, a size limit."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Collection

import h11

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.server.input.pictures.data_urls import too_large
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
    """Fetches pictures from hosts that the operator has named.

    Args:
        hosts: their names.
        timeout_s: for all of it, from the first question to the last byte.
        max_bytes: of a picture.
        resolve, connect: how; tests have others.
    """

    def __init__(
        self,
        hosts: Collection[str],
        timeout_s: float,
        max_bytes: int,
        resolve: Resolve = addresses_of,
        connect: Connect = _connect,
    ) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._timeout_s, self._max_bytes = timeout_s, max_bytes
        self._resolve, self._connect = resolve, connect

    async def fetch(self, url: str, param: str) -> bytes:
        """What is at a URL.

        Raises:
            InvalidRequestError: it may not be fetched, or could not.
        """
        target = target_of(url, self._hosts, param)
        try:
            async with asyncio.timeout(self._timeout_s):
                address = public_address(await self._resolve(target.host), param)
                return await self._get(address, target, param)
        except TimeoutError:
            raise InvalidRequestError(
                f"The picture's host took longer than {self._timeout_s:g} s.", param=param
            ) from None
        except (OSError, h11.ProtocolError):
            raise InvalidRequestError(
                "The picture cannot be fetched from its host.", param=param
            ) from None

    async def _get(self, address: str, target: Target, param: str) -> bytes:
        reader, writer = await self._connect(address, target.host)
        try:
            connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
            writer.write(_request(connection, target))
            await writer.drain()
            return await self._body(connection, reader, param)
        finally:
            # Nothing is left to be said, and a host that does not say goodbye is not waited for.
            writer.transport.abort()

    async def _body(
        self, connection: h11.Connection, reader: asyncio.StreamReader, param: str
    ) -> bytes:
        body = bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await reader.read(_CHUNK))
            elif isinstance(event, h11.Response):
                self._check(event, param)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._max_bytes:
                    raise too_large(self._max_bytes, param)
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            elif not isinstance(event, h11.InformationalResponse):
                raise ConnectionError("the answer ended early")

    def _check(self, response: h11.Response, param: str) -> None:
        if response.status_code != _OK:
            raise InvalidRequestError(
                f"The picture's host answered {response.status_code}; redirects are not followed.",
                param=param,
            )
        declared = dict(response.headers).get(b"content-length", b"")
        if declared.isdigit() and int(declared[:20]) > self._max_bytes:
            raise too_large(self._max_bytes, param)


def _request(connection: h11.Connection, target: Target) -> bytes:
    headers = [
        ("Host", target.host),
        ("Accept", "image/*"),
        ("Accept-Encoding", "identity"),
        ("User-Agent", "mlx_parallm"),
        ("Connection", "close"),
    ]
    request = h11.Request(method="GET", target=target.path, headers=headers)
    return connection.send(request) + connection.send(h11.EndOfMessage())
