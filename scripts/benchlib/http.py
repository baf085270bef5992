"""A small HTTP client for soak tests: whole answers, and hanging up in the middle of one."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Answer:
    """A complete answer; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: it is none.
        """
        return json.loads(self.body)

    def events(self) -> tuple[list[dict[str, Any]], bool]:
        """The JSON objects of an event stream, and whether [DONE] ended it."""
        parts = [part.strip() for part in self.body.split(b"\n\n") if part.strip()]
        done = bool(parts) and parts[-1] == b"data: [DONE]"
        return [json.loads(part[5:]) for part in parts if part != b"data: [DONE]"], done


class Connection:
    """Requests to one server, a connection for each.

    Args:
        timeout_s: for a whole answer.
    """

    def __init__(self, url: str, timeout_s: float = 120) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"expected an http:// address, got {url!r}")
        self._host, self._port = parts.hostname, parts.port or 80
        self._timeout_s = timeout_s

    async def get(self, path: str) -> Answer:
        """GET; raises OSError or ValueError where there is no complete answer."""
        return await self._exchange("GET", path, b"")

    async def post(self, path: str, body: bytes, headers: dict[str, str] | None = None) -> Answer:
        """POST; raises OSError or ValueError where there is no complete answer."""
        return await self._exchange("POST", path, body, headers or {})

    async def delete(self, path: str) -> Answer:
        """DELETE; raises OSError or ValueError where there is no complete answer."""
        return await self._exchange("DELETE", path, b"")

    async def hang_up(self, path: str, body: bytes, pieces: int, wait_s: float) -> None:
        """POST, read some pieces of the answer, wait at most so long for each, and be gone."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(self._request("POST", path, body))
            for _ in range(pieces + 1):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(reader.read(4096), wait_s)
        finally:
            writer.transport.abort()

    async def _exchange(
        self, method: str, path: str, body: bytes, headers: dict[str, str] | None = None
    ) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._exchanged(method, path, body, headers)
        except TimeoutError:
            sent = f"{method} {path} {body[:300].decode(errors='replace')}"
            raise TimeoutError(f"no answer within {self._timeout_s} s to {sent}") from None

    async def _exchanged(
        self, method: str, path: str, body: bytes, headers: dict[str, str] | None
    ) -> Answer:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(self._request(method, path, body, headers))
            return await _read(await reader.readuntil(b"\r\n\r\n"), reader)
        except asyncio.IncompleteReadError as error:
            raise ValueError(f"the answer to {method} {path} was cut off") from error
        finally:
            writer.close()

    def _request(
        self, method: str, path: str, body: bytes, headers: dict[str, str] | None = None
    ) -> bytes:
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"{more}Connection: close\r\n\r\n"
        )
        return head.encode() + body


async def _read(head: bytes, reader: asyncio.StreamReader) -> Answer:
    lines = head.decode("latin-1").split("\r\n")
    headers = {n.lower(): v for n, _, v in (line.partition(": ") for line in lines[1:]) if n}
    if headers.get("transfer-encoding") == "chunked":
        body = b"".join([chunk async for chunk in _chunks(reader)])
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    else:
        body = await reader.read()
    return Answer(int(lines[0].split(" ")[1]), headers, body)


async def _chunks(reader: asyncio.StreamReader) -> Any:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]
