"""A light HTTP client that puts load on a server and measures its answers.

It shares its machine with the server that it measures, so during a run it does nothing
but send prepared bytes and keep what comes with the time it came; all parsing is done
when the run is over.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit


@dataclass(slots=True)
class Reply:
    """The raw answer to one request; times are time.perf_counter() seconds.

    Attributes:
        started: when the request was sent.
        pieces: (time, bytes) as they came.
        error: why there is no complete answer; empty otherwise.
    """

    started: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True, slots=True)
class Measured:
    """One request's figures; times in seconds.

    Attributes:
        first_token: from sending to the first text; None when not streaming.
        gaps: between one text and the next.
        latency: from sending to the last byte.
        error: empty for a complete answer with status 200.
    """

    latency: float
    first_token: float | None
    gaps: list[float]
    prompt_tokens: int
    output_tokens: int
    error: str = ""


@dataclass(frozen=True)
class Run:
    """All answers of one run.

    Attributes:
        seconds: from the first request's start to the last answer's end.
        client_cpu: CPU seconds that this process used meanwhile.
    """

    replies: list[Measured]
    seconds: float
    client_cpu: float


class _Receiver(asyncio.Protocol):
    """Sends one request on a connection of its own and keeps what comes until it closes."""

    def __init__(self, request: bytes, reply: Reply) -> None:
        self.request = request
        self.reply = reply
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.reply.pieces.append((time.perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.reply.error = f"{type(exc).__name__}: {exc}"
        if not self.done.done():
            self.done.set_result(None)


class Target:
    """Where requests go.

    Args:
        url: root of the server, such as http://127.0.0.1:8000.
        path: endpoint.
        headers: further headers, an API key for example.
    """

    def __init__(self, url: str, path: str, headers: dict[str, str] | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise ValueError(f"expected an http:// address, got {url!r}")
        self.host, self.port = parts.hostname, parts.port or 80
        lines = [f"POST {parts.path.rstrip('/')}{path} HTTP/1.1", f"Host: {parts.netloc}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self._head = "\r\n".join([*lines, "Content-Type: application/json", "Connection: close"])

    def request(self, body: dict[str, Any]) -> bytes:
        """A whole HTTP request, ready to be sent."""
        data = json.dumps(body).encode()
        return f"{self._head}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data

    async def post(self, request: bytes, timeout_s: float) -> Reply:
        """Send a prepared request and keep its answer. Never raises for network faults."""
        reply = Reply(time.perf_counter())
        receiver = _Receiver(request, reply)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                await loop.create_connection(lambda: receiver, self.host, self.port)
                await receiver.done
        except TimeoutError:
            reply.error = f"no complete answer in {timeout_s:g} s"
        except OSError as error:
            reply.error = f"{type(error).__name__}: {error}"
        finally:
            if receiver.transport is not None:
                receiver.transport.close()
        return reply


async def closed_loop(
    target: Target, requests: Sequence[bytes], clients: int, timeout_s: float
) -> Run:
    """`clients` clients that each send the next request when their last one is answered."""
    waiting = iter(requests)
    replies: list[Reply] = []

    async def client() -> None:
        for request in waiting:
            reply = await target.post(request, timeout_s)
            replies.append(reply)

    return await _measure(replies, [client() for _ in range(clients)])


async def open_loop(
    target: Target, requests: Sequence[bytes], rate: float, seed: int, timeout_s: float
) -> Run:
    """Requests at the random times of a Poisson process with `rate` a second."""
    rng = random.Random(seed)
    replies: list[Reply] = []
    due = 0.0

    async def client(request: bytes, wait_s: float) -> None:
        await asyncio.sleep(wait_s)
        replies.append(await target.post(request, timeout_s))

    clients = []
    for request in requests:
        clients.append(client(request, due))
        due += rng.expovariate(rate)
    return await _measure(replies, clients)


async def _measure(replies: list[Reply], clients: list[Any]) -> Run:
    start, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*clients)
    seconds, client_cpu = time.perf_counter() - start, time.process_time() - cpu
    return Run([measure(reply) for reply in replies], seconds, client_cpu)


# --- reading answers ----------------------------------------------------------------------


def measure(reply: Reply) -> Measured:
    """Figures of one answer, streamed or not."""
    ended = reply.pieces[-1][0] if reply.pieces else time.perf_counter()
    try:
        status, streams, events = _read(reply)
        usage, texts = _usage_and_texts(events)
        error = reply.error or _fault(status, events)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as fault:
        return Measured(
            ended - reply.started, None, [], 0, 0, reply.error or f"bad answer: {fault}"
        )
    return Measured(
        latency=ended - reply.started,
        first_token=texts[0] - reply.started if streams and texts else None,
        gaps=[later - earlier for earlier, later in pairwise(texts)],
        prompt_tokens=usage.get("prompt_tokens", 0),
        # A server without usage in its streams is taken to send one token an event.
        output_tokens=usage.get("completion_tokens", len(texts)),
        error=error,
    )


Event = tuple[float, dict[str, Any]]
_EVENT_END = re.compile(rb"\r?\n\r?\n")
_DONE = b"data: [DONE]"


def _read(reply: Reply) -> tuple[int, bool, list[Event]]:
    """Status, whether it is an event stream, and the JSON objects with their times."""
    raw = b"".join(data for _, data in reply.pieces)
    head, found, _ = raw.partition(b"\r\n\r\n")
    if not found:
        raise ValueError("no complete HTTP header")
    lines = head.decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
    chunked = headers.get("transfer-encoding") == "chunked"
    body = _Body(reply, raw, len(head) + 4, chunked)
    status = int(lines[0].split(" ")[1])
    if "event-stream" in headers.get("content-type", ""):
        return status, True, list(_events(body))
    return status, False, [(reply.pieces[-1][0], json.loads(bytes(body.data)))]


class _Body:
    """A body without its transfer encoding, and the time at which each byte had come."""

    def __init__(self, reply: Reply, raw: bytes, start: int, chunked: bool) -> None:
        self.data = bytearray()
        self._ends: list[int] = []
        self._times: list[float] = []
        arrived = 0
        marks = []  # how much of raw had come, and when
        for when, data in reply.pieces:
            arrived += len(data)
            marks.append((arrived, when))
        for first, last in _chunks(raw, start) if chunked else [(start, len(raw))]:
            self._append(raw, first, last, marks)

    def _append(self, raw: bytes, first: int, last: int, marks: list[tuple[int, float]]) -> None:
        base = len(self.data) - first
        self.data += raw[first:last]
        place = bisect.bisect_right(marks, (first, float("inf")))
        for arrived, when in marks[place:]:
            self._ends.append(base + min(arrived, last))
            self._times.append(when)
            if arrived >= last:
                break

    def time_of(self, index: int) -> float:
        """When byte `index` of the data came."""
        return self._times[bisect.bisect_right(self._ends, index)]


def _chunks(raw: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Where the chunks of a chunked body lie in `raw`; a cut-off body ends early."""
    while (line := raw.find(b"\r\n", start)) >= 0:
        size = int(raw[start:line].split(b";")[0], 16)
        if size == 0:
            return
        yield line + 2, min(line + 2 + size, len(raw))
        start = line + 2 + size + 2


def _events(body: _Body) -> Iterator[Event]:
    """Server-sent events up to [DONE]; comments are passed over."""
    data, start = bytes(body.data), 0
    for border in _EVENT_END.finditer(data):
        event, start = data[start : border.start()].strip(), border.end()
        if event == _DONE:
            return
        if event.startswith(b"data:"):
            yield body.time_of(border.start()), json.loads(event[5:])
    raise ValueError("the stream was cut off")


def _usage_and_texts(events: list[Event]) -> tuple[dict[str, int], list[float]]:
    """The last usage seen, and the times of all events that brought text."""
    usage: dict[str, int] = {}
    texts = []
    for when, event in events:
        usage = event.get("usage") or usage
        if any(_text(choice) for choice in event.get("choices") or []):
            texts.append(when)
    return usage, texts


def _text(choice: dict[str, Any]) -> str | None:
    part = choice.get("delta") or choice.get("message") or choice
    text: str | None = part.get("text") or part.get("content")
    return text


def _fault(status: int, events: list[Event]) -> str:
    errors = [event["error"] for _, event in events if "error" in event]
    if status == 200 and not errors:
        return ""
    return f"status {status}: {errors[0] if errors else 'no message'}"
