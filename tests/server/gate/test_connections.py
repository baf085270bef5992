"""Nobody takes the server down with sockets: idle ones, slow ones, many, and broken requests."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from mlx_parallm.server.gate import rare_log
from mlx_parallm.server.gate.connections import address_of
from mlx_parallm.server.gate.limits import ConnectionLimits
from mlx_parallm.server.gate.rare_log import OncePerMinute
from mlx_parallm.server.gate.read_pace import ReadPace
from mlx_parallm.settings import Settings
from tests.waiting import PATIENCE_S

COMPLETIONS = "/v1/completions"
HEAD = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
IMPATIENT = ConnectionLimits(most=64, most_per_address=48, header_s=1, body_s=1, idle_s=1)


def connect(server: Any, first: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
    client.sendall(first)
    return client


def read_all(client: socket.socket) -> bytes:
    """Everything until the server closes."""
    received = b""
    try:
        while piece := client.recv(65536):
            received += piece
    except ConnectionResetError:
        pass
    return received


def envelope_of(answer: bytes) -> tuple[int, dict[str, Any]]:
    """Status and error of a raw answer, which must be whole and in our envelope."""
    head, _, body = answer.partition(b"\r\n\r\n")
    names = {line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]}
    assert {b"x-request-id", b"content-length", b"connection"} <= names, head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error


def is_healthy(server: Any) -> bool:
    """Whether a new client is told so."""
    return httpx.get(f"{server.url}/health", timeout=PATIENCE_S).status_code == 200


def is_open(client: socket.socket) -> bool:
    """Whether the server has not closed; a byte more is sent to it."""
    try:
        client.send(b"a")
        return client.recv(65536, socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_idle_and_trickling_sockets_keep_nobody_out(
    serve: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(limits=IMPATIENT)
    caplog.set_level(logging.WARNING)
    kinds = (b"", b"GET /health HTTP/1.1\r\nx-slow: ", HEAD + b"content-length: 99\r\n\r\n{")
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server, kinds[i % 3])) for i in range(300)]
        while clients:  # a byte now and then keeps none of them
            assert is_healthy(server)
            clients = [client for client in clients if is_open(client)]
            time.sleep(0.1)
        assert server.ok(COMPLETIONS, prompt="ok")
    assert len(caplog.messages) < 6
    assert all(record.name == "mlx_parallm.connections" for record in caplog.records)


@pytest.mark.parametrize(
    "first", [b"GET /health HTTP/1.1\r\n", HEAD + b"content-length: 9\r\n\r\n"]
)
def test_a_request_that_does_not_come_is_a_408(serve: Any, helpers: Any, first: bytes) -> None:
    server = serve(limits=ConnectionLimits(header_s=0.5, body_s=0.5))
    began = time.monotonic()
    with connect(server, first) as client:
        status, error = envelope_of(read_all(client))
    assert (status, error["code"]) == (408, "request_timeout")
    assert time.monotonic() - began > 0.4
    helpers.wait_until(lambda: not server.runner.server_state.tasks)


def test_idle_connections_are_closed_without_a_word(serve: Any) -> None:
    server = serve(limits=ConnectionLimits(header_s=0.3, idle_s=1))
    with connect(server) as fresh:
        assert read_all(fresh) == b""
    with connect(server, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n") as used:
        assert read_all(used).count(b"HTTP/1.1") == 1


def test_a_large_body_that_keeps_coming_is_read(serve: Any) -> None:
    """Each 16 KiB of it bring a second more."""
    server = serve(limits=ConnectionLimits(body_s=1))
    piece = b" " * 1024 * 1024
    with connect(
        server, HEAD + b"content-length: %d\r\n\r\n%s" % (8 * len(piece) + 15, piece)
    ) as client:
        for _ in range(7):
            client.sendall(piece)
            time.sleep(0.15)
        client.sendall(b'{"prompt": "x"}')
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_where_all_connections_are_busy_only_health_is_answered(serve: Any, helpers: Any) -> None:
    server = serve(limits=ConnectionLimits(4, 4))
    body = b'{"prompt": "ab", "ignore_eos": true, "max_tokens": 500, "stream": true}'
    whole = HEAD + b"content-length: %d\r\n\r\n%s" % (len(body), body)
    with ExitStack() as stack:
        with server.engine.held():
            streams = [stack.enter_context(connect(server, whole)) for _ in range(4)]
            helpers.wait_until(lambda: len(server.engine.live) == 4)
            for _ in range(3):
                assert is_healthy(server)
                refused = httpx.post(
                    server.url + COMPLETIONS, json={"prompt": "x"}, timeout=PATIENCE_S
                )
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "service_unavailable"
                assert int(refused.headers["retry-after"]) > 0
                assert refused.headers["connection"] == "close"
            assert len(server.engine.live) == 4
        for stream in streams:
            assert stream.recv(100).startswith(b"HTTP/1.1 200 ")
    helpers.wait_until(lambda: not server.engine.live)
    assert (
        httpx.post(server.url + COMPLETIONS, json={"prompt": "x"}, timeout=PATIENCE_S).status_code
        == 200
    )


GET = b"GET /health HTTP/1.1\r\nhost: x\r\n"
CHUNKED = b"transfer-encoding: chunked\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status", "says"),
    [
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400, "request line"),
        (b"GET /\r\n\r\n", 400, "request line"),
        (b"GET /a b HTTP/1.1\r\nhost: x\r\n\r\n", 400, "request line"),
        (b"GET /health HTTP/1.1\r\n\r\n", 400, "Host"),
        (GET + b"host: y\r\n\r\n", 400, "Host"),
        (GET + b"a b: c\r\n\r\n", 400, "header line"),
        (GET + b"content-length: -1\r\n\r\n", 400, "Content-Length"),
        (GET + b"content-length: 1\r\ncontent-length: 2\r\n\r\n", 400, "Content-Length"),
        (HEAD + CHUNKED + b"content-length: 3\r\n\r\n0\r\n\r\n", 400, "exclude each other"),
        (HEAD + b"content-length: 3\r\n" + CHUNKED + b"\r\n0\r\n\r\n", 400, "exclude each other"),
        (HEAD.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n0\r\n\r\n", 400, "HTTP/1.0"),
        (HEAD + b"transfer-encoding: gzip\r\n\r\n", 501, "Transfer-Encoding"),
        (HEAD + CHUNKED + b"\r\nzz\r\n", 400, "chunk"),
        (b"GET /health HTTP/2.0\r\nhost: x\r\n\r\n", 505, "HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/1.1"),
        (b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n" % (b"a" * 100_000), 414, "URL"),
        (GET + b"a: %s\r\n\r\n" % (b"a" * 100_000), 431, "headers"),
    ],
)
def test_bytes_that_are_no_request(
    server: Any, request_bytes: bytes, status: int, says: str
) -> None:
    with connect(server, request_bytes) as client:
        given, error = envelope_of(read_all(client))
    assert given == status
    assert error["code"] == "invalid_http"
    assert says.lower() in error["message"].lower()
    assert is_healthy(server)


def test_broken_requests_do_not_fill_the_log(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    for _ in range(50):
        with connect(server, b"\x00\r\n\r\n") as client:
            read_all(client)
    assert len([r for r in caplog.records if r.levelno >= logging.WARNING]) <= 1


def test_the_log_tells_how_many_lines_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(rare_log, "monotonic", lambda: clock[0])
    once = OncePerMinute()

    def line(text: str, *args: Any) -> logging.LogRecord:
        return logging.LogRecord("x", logging.WARNING, "", 0, text, args, None)

    assert once.filter(line("%s came", 1))
    assert not once.filter(line("%s came", 2))
    assert not once.filter(line("%s came", 3))
    assert once.filter(line("another"))
    clock[0] += 61
    last = line("%s came", 4)
    assert once.filter(last)
    assert last.getMessage() == "4 came (2 more like this since the last)"


def test_few_requests_are_parsed_in_one_turn_and_probes_do_not_wait(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All have come before the first is answered, /health last: it is among the first answers."""
    from mlx_parallm.server import middleware

    noted, answered = middleware.Gate._note, list[str]()
    all_sent = threading.Event()

    def note(self: Any, scope: Any, status: int, seconds: float) -> None:
        if scope["path"] == "/one":
            assert all_sent.wait(PATIENCE_S)
        answered.append(scope["path"])
        noted(self, scope, status, seconds)

    server = serve()
    monkeypatch.setattr(middleware.Gate, "_note", note)
    request = b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n"
    with ExitStack() as stack:
        paths = [b"one"] * 200 + [b"health"]
        clients = [stack.enter_context(connect(server, request % path)) for path in paths]
        all_sent.set()
        statuses = [client.recv(12) for client in clients]
    assert statuses == [b"HTTP/1.1 404"] * 200 + [b"HTTP/1.1 200"]
    assert answered.index("/health") < 100


def test_the_pace_keeps_the_order() -> None:
    async def run() -> list[int]:
        pace, done = ReadPace(), list[int]()
        for place in range(100):
            pace.run(lambda place=place: done.append(place))  # type: ignore[misc]
        assert len(done) == 16
        await asyncio.sleep(0)
        assert len(done) == 32
        while len(done) < 100:
            await asyncio.sleep(0)
        return done

    assert asyncio.run(run()) == list(range(100))


def test_one_address_is_an_ipv6_network() -> None:
    assert address_of("10.0.0.1") == "10.0.0.1"
    assert address_of("::ffff:10.0.0.1") == "10.0.0.1"
    assert address_of("2001:db8::1") == address_of("2001:db8::ffff:1")
    assert address_of("2001:db8::1") != address_of("2001:db8:0:1::1")
    assert address_of("fe80::1%eth0") == "fe80::/64"
    assert address_of("") == ""


def test_the_limits_fit_the_open_files() -> None:
    assert ConnectionLimits.of(Settings(), 65_536).most == 4096
    few = ConnectionLimits.of(Settings(max_connections=5000), 1024)
    assert (few.most, few.most_per_address) == (768, 576)
    own = ConnectionLimits.of(Settings(max_connections=10, max_connections_per_address=3), 1024)
    assert (own.most, own.most_per_address) == (10, 3)


def test_importing_mlx_lm_leaves_the_limit_of_open_files() -> None:
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024));"
        "import mlx_parallm, mlx_lm.utils; assert mlx_lm.utils.TokenizerWrapper;"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.setrlimit.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout.strip() == "(1024, 1024) resource", done.stderr
