"""A proxy that keeps what a client sent and what it was answered, without headers."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_LONGEST_TEXT = 160
_PERSONAL = ("metadata", "client_metadata", "prompt_cache_key")
# Claude Code's, of which there are two dozen.
_MOST_TOOLS = 12
_KEPT_TOOLS = ("Bash", "Read", "WebSearch")
_NOT_FORWARDED = {"host", "connection", "content-length", "transfer-encoding", "accept-encoding"}


@dataclass
class Exchange:
    """One request and its answer.

    Attributes:
        body: as JSON; None where there is none.
        answer: the answer's text.
    """

    method: str
    path: str
    body: Any
    status: int = 0
    answer: str = ""

    @property
    def events(self) -> list[str]:
        """Names of a stream's events in their order, neighbours of one name once."""
        lines = self.answer.splitlines()
        names = [line.removeprefix("event: ") for line in lines if line.startswith("event: ")]
        return [name for at, name in enumerate(names) if at == 0 or names[at - 1] != name]


@dataclass
class Recorder:
    """A running proxy and what went through it."""

    url: str
    exchanges: list[Exchange] = field(default_factory=list)


def shortened(value: Any) -> Any:
    """The same JSON with long texts cut, without whose it is, and with few of many tools."""
    if isinstance(value, dict):
        kept = {name: entry for name, entry in value.items() if name not in _PERSONAL}
        tools = kept.get("tools")
        if isinstance(tools, list) and len(tools) > _MOST_TOOLS:
            kept["tools"] = [tool for tool in tools if tool.get("name") in _KEPT_TOOLS]
        return {name: shortened(entry) for name, entry in kept.items()}
    if isinstance(value, list):
        return [shortened(entry) for entry in value]
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        return value[:_LONGEST_TEXT] + "..."
    return value


@contextlib.contextmanager
def recording(server: str) -> Iterator[Recorder]:
    """Forward to `server` (its root) until the block ends."""
    exchanges: list[Exchange] = []
    handler = type("Handler", (_Handler,), {"server_url": server, "exchanges": exchanges})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield Recorder(f"http://127.0.0.1:{proxy.server_port}", exchanges)
        finally:
            proxy.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server_url = ""
    exchanges: list[Exchange]

    def do_GET(self) -> None:
        """Any request."""
        sent = self.rfile.read(int(self.headers.get("content-length") or 0))
        exchange = Exchange(self.command, self.path, _json(sent))
        self.exchanges.append(exchange)
        there = urlsplit(self.server_url)
        upstream = http.client.HTTPConnection(there.hostname or "", there.port, timeout=600)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _NOT_FORWARDED}
        with contextlib.closing(upstream):
            upstream.request(self.command, self.path, sent or None, headers)
            self._answer(exchange, upstream.getresponse())

    do_POST = do_HEAD = do_PUT = do_DELETE = do_GET

    def _answer(self, exchange: Exchange, response: http.client.HTTPResponse) -> None:
        exchange.status = response.status
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in _NOT_FORWARDED:
                self.send_header(name, value)
        self.end_headers()
        said = b""
        while piece := response.read1(65536):
            said += piece
            self.wfile.write(piece)
            self.wfile.flush()
        exchange.answer = said.decode(errors="replace")

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def _json(sent: bytes) -> Any:
    try:
        return json.loads(sent) if sent else None
    except ValueError:
        return sent.decode(errors="replace")
