#!/usr/bin/env python3
"""A server that answers everything at once, to measure what stands in front of it.

Run as a program with a port. A completion is one choice; a stream is as many events as
`max_tokens` asks for.
"""

from __future__ import annotations

import asyncio
import json
import sys

MODEL = "instant"
_JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
_LOAD = {"dp_rank": 0, "num_running_reqs": 0, "num_waiting_reqs": 0, "token_usage": 0.0}
_CHOICE = {"index": 0, "text": " word", "logprobs": None, "finish_reason": None}
_COMPLETION = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1,
    "model": MODEL,
    "choices": [_CHOICE | {"finish_reason": "length"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
_EVENT = b"data: %s\n\n" % json.dumps(_COMPLETION | {"choices": [_CHOICE]}).encode()


class InstantServer(asyncio.Protocol):
    """One connection, with requests one after the other."""

    def __init__(self) -> None:
        self._data = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by asyncio."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Called by asyncio."""
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            head = self._data[:end].lower()
            length = _length(head)
            if len(self._data) < end + 4 + length:
                return
            body = self._data[end + 4 : end + 4 + length]
            self._data = self._data[end + 4 + length :]
            assert self._transport is not None
            self._transport.write(answer_to(head, body))
            if b"\r\nconnection: close" in head:
                self._transport.close()


def answer_to(head: bytes, body: bytes) -> bytes:
    """A whole answer."""
    if head.startswith(b"get /v1/models"):
        return _as_json({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
    if head.startswith(b"get /v1/loads"):
        return _as_json({"dp_rank_count": 1, "loads": [_LOAD], "aggregate": {}})
    if head.startswith(b"get "):
        return _as_json({"status": "healthy"})
    asked = json.loads(body)
    if not asked.get("stream"):
        return _as_json(_COMPLETION)
    events = [_EVENT] * asked["max_tokens"] + [b"data: [DONE]\n\n"]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events)
    return _STREAM + chunks + b"0\r\n\r\n"


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return 0


def _as_json(value: object) -> bytes:
    data = json.dumps(value).encode()
    return _JSON % (len(data), data)


async def serve(port: int) -> None:
    """Answer until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(InstantServer, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
