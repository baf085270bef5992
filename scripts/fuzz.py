#!/usr/bin/env python3
"""Broken requests by the ten thousand: nothing may be a fault of the server, nothing may hang.

    scripts/fuzz.py --count 100000
    scripts/fuzz.py --url http://127.0.0.1:8000 --count 5000 --seed 7

A third of the requests are examples of the API document with something odd in them, a third are
bodies that are no JSON, or none that was meant, and a third are bytes on the socket that are no
HTTP. Checked: no answer of 500, every connection ends, the server is healthy, and a reference
answer stays what it was. A failure is printed with what was sent.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import asyncio
import json
import random
import sys
import time
import urllib.request
from collections import Counter
from typing import Any

from benchlib.servers import SpawnError, our_command, spawn

REFERENCE = {"prompt": "3 + 4 =", "max_tokens": 8, "temperature": 0, "logprobs": 1}
# Honest refusals: busy, nothing of the kind is served, another version of HTTP.
_MAY_BE = frozenset({501, 503, 505})
_ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**63, -(2**70), 1e308, -0.0, 1e-320, "", " ", "\0", "\ud83d"),
    *("x" * 9000, "<|im_end|>", "%s%n", "../../etc/passwd", "{{ 7 * 7 }}", [], {}, [None], [[]]),
    *([0] * 3000, {"a": {"b": {"c": {}}}}, [[[[[[[[[[1]]]]]]]]]], "2026-01-01", "NaN", -1.5),
)
# Changes that end the tests themselves.
_LEFT_ALONE = ("pause", "sleep", "weight", "shutdown", "communicator", "configure")


class Fuzzer:
    """Makes requests, all from one seed.

    Args:
        paths: of the API document, with an example body for each POST.
    """

    def __init__(self, paths: dict[str, Any], seed: int) -> None:
        self._random = random.Random(seed)
        self._examples = paths

    def request(self) -> tuple[bytes, bool]:
        """Bytes for one connection, and whether the client then says that no more will come.

        A server waits for the rest of what is not whole; a client that hangs up gets no answer.
        """
        kind = self._random.randrange(3)
        if kind == 0:
            body = json.dumps(self._odd_example()).encode("utf-8", "surrogatepass")
            return self._http(body, len(body)), False
        if kind == 1:
            body, whole = self._no_json(), self._random.random() < 0.9
            return self._http(body, len(body) if whole else self._random.randint(0, 999)), not whole
        return self._no_http(), True

    def _path(self) -> str:
        return self._random.choice(list(self._examples))

    def _odd_example(self) -> Any:
        self._chosen = self._path()
        body = json.loads(json.dumps(self._examples[self._chosen]))
        for _ in range(self._random.randint(1, 3)):
            body = self._changed(body)
        return body

    def _changed(self, value: Any) -> Any:
        """The value with one odd thing somewhere in it."""
        odd = self._random.choice(_ODD)
        if isinstance(value, dict) and value and self._random.random() < 0.85:
            name = self._random.choice(list(value))
            choice = self._random.randrange(4)
            if choice == 0:
                return {**value, self._random.choice(("n", "stop", "seed", "nope", "")): odd}
            if choice == 1:
                return {key: other for key, other in value.items() if key != name}
            return {**value, name: self._changed(value[name]) if choice == 2 else odd}
        if isinstance(value, list) and value and self._random.random() < 0.7:
            place = self._random.randrange(len(value))
            return [*value[:place], self._changed(value[place]), *value[place + 1 :]]
        return odd

    def _no_json(self) -> bytes:
        self._chosen = self._path()
        whole = json.dumps(self._examples[self._chosen]).encode()
        return self._random.choice(
            (
                self._random.randbytes(self._random.randint(0, 400)),
                whole[: self._random.randint(0, len(whole))],
                whole + self._random.randbytes(5),
                b"[" * 5000,
                b'{"a":' * 500,
                b"\xff\xfe" + whole,
                b'{"prompt": "x", "prompt": ["y"], "max_tokens": 1}',
                b'{"temperature": NaN, "prompt": "x"}',
            )
        )

    def _http(self, body: bytes, length: int) -> bytes:
        head = f"POST {self._chosen} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        return f"{head}Content-Length: {length}\r\n\r\n".encode() + body

    def _no_http(self) -> bytes:
        noise = self._random.randbytes(self._random.randint(1, 300))
        return self._random.choice(
            (
                noise,
                b"GET /health HTTP/1.1\r\n" + noise + b"\r\n\r\n",
                b"GET /" + noise + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
                b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nZZ\r\n" + noise,
                b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                b"A: " + b"b" * 70_000 + b"\r\n\r\n",
                b"TRACE * HTTP/9.9\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + noise,
            )
        )


class Run:
    """Sends requests over a number of connections, and keeps what went wrong."""

    def __init__(self, url: str, fuzzer: Fuzzer, count: int, patience_s: float) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._fuzzer = fuzzer
        self._left = count
        self._patience_s = patience_s
        self.statuses: Counter[str] = Counter()
        self.failures: list[str] = []

    async def all(self, connections: int) -> None:
        """Until nothing is left."""
        await asyncio.gather(*(self._some() for _ in range(connections)))

    async def _some(self) -> None:
        while self._left > 0 and len(self.failures) < 20:
            self._left -= 1
            sent, ends = self._fuzzer.request()
            try:
                status = await asyncio.wait_for(self._one(sent, ends), self._patience_s)
            except TimeoutError:
                self.failures.append(f"no end within {self._patience_s} s: {sent[:600]!r}")
                continue
            self.statuses[status] += 1
            if status.startswith("5") and int(status) not in _MAY_BE:
                self.failures.append(f"{status}: {sent[:1500]!r}")

    async def _one(self, sent: bytes, ends: bool) -> str:
        """The status of the answer; "closed" where there was none."""
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(sent)
            if ends:
                writer.write_eof()
            answer = await reader.read()
        except (ConnectionError, OSError):
            return "closed"
        finally:
            writer.close()
        line = answer.split(b"\r\n", 1)[0].split()
        return line[1].decode() if len(line) > 1 and line[0].startswith(b"HTTP/") else "closed"


def examples(url: str) -> dict[str, Any]:
    """A body for each POST of the server's API document, short answers where there are any."""
    with urllib.request.urlopen(f"{url}/openapi.json", timeout=60) as answer:
        document = json.load(answer)
    schemas, found = document["components"]["schemas"], {}
    for path, methods in document["paths"].items():
        content = methods.get("post", {}).get("requestBody", {}).get("content", {})
        schema = content.get("application/json", {}).get("schema")
        if schema is None or any(word in path for word in _LEFT_ALONE):
            continue
        name = (schema.get("$ref") or schema.get("anyOf", [{}])[0].get("$ref", "")).rpartition("/")[
            2
        ]
        body = dict(schemas.get(name, {}).get("examples", [{}])[0])
        for name in ("max_tokens", "n_predict", "max_output_tokens"):
            if name in body:
                body[name] = 2
        found[path.replace("{model_id}", "bundled").replace("{name}", "none")] = body
    return found


def reference(url: str) -> Any:
    """What must not change."""
    request = urllib.request.Request(
        f"{url}/v1/completions",
        json.dumps(REFERENCE).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"]


def fuzz(url: str, options: argparse.Namespace) -> list[str]:
    """Run it; returns what went wrong."""
    expected = reference(url)
    fuzzer = Fuzzer(examples(url), options.seed)
    run, began, done = Run(url, fuzzer, 0, options.patience), time.perf_counter(), 0
    while done < options.count and not run.failures:
        run._left = min(options.every, options.count - done)
        done += run._left
        asyncio.run(run.all(options.connections))
        if reference(url) != expected:
            run.failures.append(f"the reference answer changed within the first {done} requests")
        rate = done / (time.perf_counter() - began)
        print(f"{done} requests, {rate:.0f} a second: {dict(run.statuses)}", flush=True)
    return run.failures


def main() -> int:
    """Exit code 1 where something went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--url", help="of a running server; default: one of its own, bundled")
    parser.add_argument("--count", type=int, default=10_000, help="requests (default: 10000)")
    parser.add_argument("--seed", type=int, default=0, help="of the requests (default: 0)")
    parser.add_argument("--connections", type=int, default=16, help="at once (default: 16)")
    parser.add_argument(
        "--every", type=int, default=2000, help="requests between looks (default: 2000)"
    )
    parser.add_argument(
        "--patience", type=float, default=120, help="seconds for one answer (default: 120)"
    )
    options = parser.parse_args()
    try:
        if options.url:
            failures = fuzz(options.url, options)
        else:
            with spawn("the server", our_command("bundled", "--log-level", "critical")) as server:
                failures = fuzz(server.url, options)
    except SpawnError as error:
        failures = [str(error)]
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
