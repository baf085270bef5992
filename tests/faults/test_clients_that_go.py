"""Clients that leave at every point of the protocol, or read slowly: their rows come back, and
others get what they get alone."""

from __future__ import annotations

import json
import socket
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import assert_no_leaks, tiny_llama
from tests.faults.conftest import ServeFactory
from tests.server.conftest import Served

COMPLETIONS = "/v1/completions"
BODY = json.dumps({"prompt": "go", "max_tokens": 400, "ignore_eos": True, "n": 2}).encode()
STREAM = json.dumps({**json.loads(BODY), "stream": True}).encode()


def request(body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return (
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (size, body)
    )


# What is sent, and how many bytes are read before the client goes.
POINTS = {
    "before a word": (b"", 0),
    "in the request line": (b"POST /v1/comp", 0),
    "in a header": (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-", 0),
    "before the body": (request(b"", 100), 0),
    "in the body": (request(BODY[:20], len(BODY)), 0),
    "before the answer": (request(BODY), 0),
    "before the stream": (request(STREAM), 0),
    "in the stream's headers": (request(STREAM), 20),
    "in the stream": (request(STREAM), 2000),
    "between two requests": (request(BODY.replace(b"400", b"1")), 300),
    "with a second request behind": (request(STREAM) + request(STREAM), 600),
}


def go_away(served: Served, sent: bytes, read: int, how: str) -> None:
    with socket.create_connection(("127.0.0.1", served.port), timeout=120) as client:
        if how == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sendall(sent)
        got = 0
        while got < read:
            got += len(client.recv(read - got))
        if how == "half":
            client.shutdown(socket.SHUT_WR)


def text_of(served: Served, prompt: str) -> Any:
    body = {"prompt": prompt, "max_tokens": 10, "seed": 5, "ignore_eos": True}
    return served.ok(COMPLETIONS, **body)["choices"][0]["text"]


@pytest.mark.parametrize("how", ["close", "reset", "half"])
def test_at_every_point(serve: ServeFactory, how: str) -> None:
    served = serve(tiny_llama)
    goods = [f"stays, number {place}" for place in range(3)]
    alone = [text_of(served, good) for good in goods]
    with ThreadPoolExecutor(3) as pool:
        for sent, read in POINTS.values():
            beside = [pool.submit(text_of, served, good) for good in goods]
            go_away(served, sent, read, how)
            assert [one.result() for one in beside] == alone
        crowd = [
            pool.submit(go_away, served, sent, read, how) for sent, read in [*POINTS.values()] * 3
        ]
        for one in crowd:
            one.result()
    assert_no_leaks(served.engine, 120)
    assert served.http.get("/health").status_code == 200
    assert [text_of(served, good) for good in goods] == alone


def test_a_slow_reader_gets_all_of_it_and_holds_nobody_up(serve: ServeFactory) -> None:
    served = serve(tiny_llama)
    right = text_of(served, "quick")
    body = {"prompt": "slow", "max_tokens": 300, "ignore_eos": True, "stream": True, "n": 4}
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(120)
        client.connect(("127.0.0.1", served.port))
        client.sendall(request(json.dumps({**body, "logprobs": 20}).encode()))
        received = client.recv(1000)
        for _ in range(4):
            assert text_of(served, "quick") == right
            received += client.recv(1000)
        assert_no_leaks(served.engine, 120)  # its rows do not wait for it
        while not received.endswith(b"0\r\n\r\n"):
            received += client.recv(65536)
    assert received.count(b'"finish_reason":"length"') == 4
    assert b"[DONE]" in received
