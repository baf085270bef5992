"""A small hub on loopback: as much of the protocol as a download needs, and faults."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" * 6 + "c0ff"


def git_sha1(data: bytes) -> str:
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class TinyHub:
    """One model, its files, and what goes wrong.

    Attributes:
        files: name -> content; *.safetensors and *.gguf are large files (SHA-256).
        listed: name -> size that the listing gives instead of the true one.
        sent: name -> content that is sent instead of the true one.
        cuts: name -> bytes after which the connection is closed, one for each answer.
        statuses: path prefix -> (status, headers) of the next answers there.
        slow: name -> seconds between two halves of the content.
        gate: name -> what the second half of the content waits for.
        ranges: whether a part of a file may be asked for.
    """

    files: dict[str, bytes]
    listed: dict[str, int] = field(default_factory=dict)
    sent: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    statuses: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    slow: dict[str, float] = field(default_factory=dict)
    gate: dict[str, threading.Event] = field(default_factory=dict)
    ranges: bool = True
    bytes_sent: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        hub = self

        class Handler(_Handler):
            tiny = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        """The value of HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        """No more answers."""
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def digest(self, name: str) -> str:
        """What the hub says that a file's checksum is."""
        data = self.files[name]
        return hashlib.sha256(data).hexdigest() if _large(name) else git_sha1(data)

    def listing(self) -> list[dict[str, Any]]:
        """The files as both of the hub's listings have them."""
        rows = []
        for name, data in self.files.items():
            size = self.listed.get(name, len(data))
            row: dict[str, Any] = {"rfilename": name, "path": name, "type": "file", "size": size}
            row |= {"blobId": git_sha1(data), "oid": git_sha1(data)}
            if _large(name):
                sha256 = self.digest(name)
                row["lfs"] = {"sha256": sha256, "oid": sha256, "size": size, "pointerSize": 130}
            rows.append(row)
        return rows


def _large(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf"))


class _Handler(BaseHTTPRequestHandler):
    tiny: TinyHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the test's output stays clean."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.tiny.requests.append(f"{self.command} {path}")
        for prefix, answers in self.tiny.statuses.items():
            if path.startswith(prefix) and answers:
                status, headers = answers.pop(0)
                return self._send(status, b"{}", headers)
        if re.fullmatch(r"/api/models/[^/]+/[^/]+(/revision/main)?", path):
            found = {"id": "a/b", "sha": COMMIT, "siblings": self.tiny.listing()}
            return self._send(200, json.dumps(found).encode())
        if re.match(r"/api/models/[^/]+/[^/]+/tree/", path):
            return self._send(200, json.dumps(self.tiny.listing()).encode())
        name = path.split(f"/resolve/{COMMIT}/")[-1]
        if name in self.tiny.files:
            return self._send_file(name)
        code = "RevisionNotFound" if "/revision/" in path else "EntryNotFound"
        return self._send(404, b"{}", {"X-Error-Code": code})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_file(self, name: str) -> None:
        hub = self.tiny
        data = hub.sent.get(name, hub.files[name])
        asked = self.headers.get("Range", "")
        start = int(asked[6:].rstrip("-")) if asked and hub.ranges else 0
        if start >= len(data):
            return self._send(416, b"")
        self.send_response(206 if start else 200)
        headers = {"ETag": f'"{hub.digest(name)}"', "X-Repo-Commit": COMMIT}
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "HEAD":
            return None
        cuts = hub.cuts.get(name)
        end = start + cuts.pop(0) if cuts else len(data)
        middle = (start + end) // 2
        for piece in (data[start:middle], data[middle:end]):
            self.wfile.write(piece)
            self.wfile.flush()
            hub.bytes_sent[name] += len(piece)
            hub.stopping.wait(hub.slow.get(name, 0))
            if name in hub.gate:
                hub.gate[name].wait()
        if end < len(data):
            self.close_connection = True
        return None
