"""Pictures from other hosts: which may be asked, at which addresses, and how."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from mlx_parallm.errors import InvalidRequestError
from mlx_parallm.server.input.data_urls import PICTURE
from mlx_parallm.server.input.pictures.fetching import Fetcher
from mlx_parallm.server.input.pictures.hosts import is_public, target_of

HOST = "pictures.example"
PUBLIC = "93.184.216.34"
LIMIT = 1000


@pytest.mark.parametrize(
    "url",
    [
        "http://pictures.example/a.png",
        "ftp://pictures.example/a.png",
        "file:///etc/passwd",
        "file://pictures.example/etc/passwd",
        "//pictures.example/a.png",
        "/etc/passwd",
        "../a.png",
        "gopher://pictures.example:70/_x",
        "https:///a.png",
        "https://other.example/a.png",
        "https://pictures.example.other.example/a.png",
        "https://notpictures.example/a.png",
        "https://user@pictures.example/a.png",
        "https://pictures.example@127.0.0.1/a.png",
        "https://127.0.0.1#@pictures.example/",
        "https://127.0.0.1\\@pictures.example/",
        "https://pictures.example\\.other.example/",
        "https://pictures.example:22/a.png",
        "https://pictures.example:x/a.png",
        "https://pictures.example:99999/a.png",
        "https://127.0.0.1/a.png",
        "https://2130706433/a.png",
        "https://0177.0.0.1/a.png",
        "https://0x7f.1/a.png",
        "https://[::1]/a.png",
        "https://[::ffff:127.0.0.1]/a.png",
        "https://[::1/a.png",
        "https://pictures.example/a\r\nHost: x",
        "https://pictures.example/ä",
        "https://pictures.example/" + "a" * 3000,
        "https://xn--pictures.example/",
        "https://\uff50ictures.example/",
    ],
)
def test_urls_that_are_not_fetched(url: str) -> None:
    with pytest.raises(InvalidRequestError) as told:
        target_of(url, {HOST}, "here")
    assert told.value.param == "here"
    assert len(told.value.message) < 300


def test_a_url_that_is() -> None:
    target = target_of("https://Pictures.Example:443/a/b.png?c=d#e", {HOST}, "here")
    assert (target.host, target.path) == (HOST, "/a/b.png?c=d")
    assert target_of("https://pictures.example", {HOST}, "here").path == "/"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.8.8.8",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.0.8",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:93.184.216.34",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "2001:db8::1",
        "no address",
    ],
)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "1.1.1.1", "2606:2800:220:1:248:1893:25c8:1946"])
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


class Host:
    """A host of pictures: a TCP server on this machine that is asked as if it were HOST."""

    def __init__(self, answer: bytes, addresses: tuple[str, ...] = (PUBLIC,)) -> None:
        self.answer, self.addresses = answer, addresses
        self.hangs = False
        self.done = asyncio.Event()
        self.asked: list[bytes] = []
        self.connected: list[tuple[str, str]] = []

    async def fetch(self, url: str = f"https://{HOST}/a.png", timeout_s: float = 60) -> bytes:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def resolve(host: str) -> list[str]:
            return list(self.addresses)

        async def connect(address: str, host: str) -> Any:
            self.connected.append((address, host))
            return await asyncio.open_connection("127.0.0.1", port)

        async with server:
            try:
                fetcher = Fetcher([HOST], timeout_s, resolve, connect)
                return await fetcher.fetch(url, PICTURE, LIMIT, "here")
            finally:
                if self.connected:
                    await self.done.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readuntil(b"\r\n\r\n"))
        try:
            writer.write(self.answer)
            await writer.drain()
            if self.hangs:
                await reader.read()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            writer.transport.abort()  # who asked has heard enough
        finally:
            self.done.set()


def answer(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, "Connection: close"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "whole",
    [
        answer(b"picture", "Content-Length: 7"),
        answer(b"picture"),
        answer(b"3\r\npic\r\n4\r\nture\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
    ],
)
def test_a_picture_comes_from_the_address_that_was_checked(whole: bytes) -> None:
    host = Host(whole)
    assert asyncio.run(host.fetch(f"https://{HOST}/a.png?b")) == b"picture"
    assert host.connected == [(PUBLIC, HOST)]
    assert host.asked[0].startswith(b"GET /a.png?b HTTP/1.1\r\n")
    assert b"\r\nhost: pictures.example\r\n" in host.asked[0].lower()


@pytest.mark.parametrize(
    "addresses",
    [("127.0.0.1",), (PUBLIC, "10.0.0.1"), ("::ffff:7f00:1",), ("169.254.169.254",), ()],
)
def test_a_name_that_leads_inside_is_not_asked(addresses: tuple[str, ...]) -> None:
    host = Host(answer(b"secret"), addresses)
    with pytest.raises(InvalidRequestError, match="not public"):
        asyncio.run(host.fetch())
    assert not host.connected


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        (answer(b"", "Location: https://127.0.0.1/", status="302 Found"), "redirects"),
        (answer(b"no", status="404 Not Found"), "404"),
        (answer(b"x" * (LIMIT + 1)), "more than 1000 bytes"),
        (answer(b"", "Content-Length: 99999999999999999999"), "more than 1000 bytes"),
        (answer(b"x", "Content-Length: 7"), "cannot be fetched"),
        (answer(b"", "X: " + "y" * 100_000), "cannot be fetched"),
        (b"not HTTP at all\r\n\r\n", "cannot be fetched"),
        (b"", "cannot be fetched"),
    ],
)
def test_answers_that_are_no_picture(whole: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as told:
        asyncio.run(Host(whole).fetch())
    assert told.value.param == "here"


def test_a_host_that_takes_its_time_is_not_waited_for() -> None:
    host = Host(answer(b"", "Content-Length: 7"))
    host.hangs = True
    with pytest.raises(InvalidRequestError, match="longer than"):
        asyncio.run(host.fetch(timeout_s=0.2))


def test_a_name_that_nobody_knows() -> None:
    async def resolve(host: str) -> list[str]:
        raise OSError("unknown")

    async def fetch() -> bytes:
        fetcher = Fetcher([HOST], 60, resolve)
        return await fetcher.fetch(f"https://{HOST}/", PICTURE, LIMIT, "here")

    with pytest.raises(InvalidRequestError, match="cannot be fetched"):
        asyncio.run(fetch())


def test_without_hosts_nothing_is_fetched() -> None:
    with pytest.raises(InvalidRequestError, match="--allow-image-hosts"):
        target_of(f"https://{HOST}/a.png", (), "here")
