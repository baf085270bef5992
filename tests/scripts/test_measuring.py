"""The arithmetic of benchmarks: times out of raw answers, percentiles, tables."""

from __future__ import annotations

import json
from typing import Any

import pytest
from benchlib import load_client
from benchlib.table import format_table, percentile, ratio

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def event(text: str, **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text}], **more}).encode() + b"\n\n"


def chunked(*parts: bytes) -> list[bytes]:
    return [b"%x\r\n%s\r\n" % (len(part), part) for part in [*parts, b""]]


def reply(*pieces: tuple[float, bytes]) -> load_client.Reply:
    return load_client.Reply(started=10.0, pieces=list(pieces))


def test_times_of_a_chunked_stream() -> None:
    usage = {"usage": {"prompt_tokens": 7, "completion_tokens": 5}}
    parts = [event("a"), event("b"), event("", **usage), b"data: [DONE]\n\n"]
    first, second, third, done, end = chunked(*parts)
    found = load_client.measure(
        reply(
            (10.5, HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + first),
            (11.0, second[:20]),  # an event counts when the last of it has come
            (11.5, second[20:]),
            (12.0, third + done + end),
        )
    )
    assert found == load_client.Measured(2.0, 0.5, [1.0], 7, 5, "")


def test_a_stream_without_lengths_and_with_comments() -> None:
    found = load_client.measure(
        reply(
            (11.0, HEAD + b"\r\n: keepalive 1/2\n\n"),
            (12.0, event("a") + event("b")),
            (13.0, event("c") + b"data: [DONE]\n\n"),
        )
    )
    assert found == load_client.Measured(3.0, 2.0, [0.0, 1.0], 0, 3, "")


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ([], "no complete HTTP header"),
        ([HEAD + b"\r\n" + event("a")], "cut off"),
        ([b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{"], "bad answer"),
        ([b"HTTP/1.1 429 X\r\n\r\n" + b'{"error": {"message": "full"}}'], "status 429"),
        ([HEAD + b"\r\n" + b'data: {"error": "lost"}\n\ndata: [DONE]\n\n'], "lost"),
    ],
)
def test_an_incomplete_answer_is_an_error(pieces: list[bytes], error: str) -> None:
    found = load_client.measure(reply(*((11.0, piece) for piece in pieces)))
    assert error in found.error


def test_figures() -> None:
    assert percentile([], 0.5) is None
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([float(value) for value in range(100)], 0.95) == 95
    assert percentile([1, 2], 1.0) == 2
    assert ratio(3, 2) == 1.5
    assert ratio(3, 0) is None
    assert format_table([{"a": 1}, {"a": None, "b": "xy"}]).splitlines() == [
        "| a | b  |",
        "|---|----|",
        "| 1 | -  |",
        "| - | xy |",
    ]
