#!/usr/bin/env python3
"""Tries the endpoints of the advanced engine on a running server, and says what it saw.

    scripts/test_advanced_client.py --url http://127.0.0.1:8000

Needs no packages. Ends with 1 when an answer is missing or not as documented.
"""

from __future__ import annotations

import argparse
import json
import sys
import urllib.error
import urllib.request
from typing import Any

PROMPTS = ["Explain what a firewall is", "The capital of France is", "3 + 4 ="]
SETTINGS = {"max_tokens": 24, "temperature": 0.7, "top_p": 0.95}
TIMEOUT_S = 120


class Client:
    """Calls one server. key: sent as a bearer token; admin_key: for /v1/configure."""

    def __init__(self, url: str, key: str | None, admin_key: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if key:
            self._headers["authorization"] = f"Bearer {key}"
        if admin_key:
            self._headers["x-admin-key"] = admin_key

    def call(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
        """The JSON of an answer."""
        return json.loads(self.text(path, body, method))

    def text(self, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> str:
        """An answer as it is."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, self._headers, method=method)
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return str(response.read().decode())


def main(argv: list[str] | None = None) -> int:
    """Try everything; returns the exit code."""
    args = _arguments(argv)
    client = Client(args.url, args.api_key, args.admin_key)
    try:
        for attempt in (single, batch, stream, stats, configure):
            print(f"{attempt.__name__}: {attempt(client)}")
    except urllib.error.HTTPError as error:
        print(f"{error.url}: {error.code} {error.read().decode()}", file=sys.stderr)
        return 1
    except (OSError, KeyError, ValueError, TypeError) as error:
        print(f"{args.url}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def single(client: Client) -> str:
    """One prompt."""
    answer = client.call("/v1/generate", {"prompt": PROMPTS[0], **SETTINGS})
    return f"{answer['generated_tokens']} tokens in {answer['latency']:.2f} s: {answer['text']!r}"


def batch(client: Client) -> str:
    """Several prompts in one request."""
    answer = client.call("/v1/generate_batch", {"prompts": PROMPTS, **SETTINGS})
    if len(answer["results"]) != len(PROMPTS):
        raise ValueError(f"{len(answer['results'])} results for {len(PROMPTS)} prompts")
    return f"{answer['total_tokens']} tokens of {len(PROMPTS)} prompts in {answer['latency']:.2f} s"


def stream(client: Client) -> str:
    """One prompt, piece by piece."""
    lines = client.text("/v1/generate", {"prompt": PROMPTS[0], **SETTINGS, "stream": True})
    events = [line.removeprefix("data: ") for line in lines.splitlines() if line]
    if events[-1] != "[DONE]":
        raise ValueError("the stream has no end")
    text = "".join(json.loads(event)["text"] for event in events[:-1])
    return f"{len(events) - 1} events: {text!r}"


def stats(client: Client) -> str:
    """What the server has counted."""
    found = client.call("/v1/stats", method="GET")
    batching, guessing = found["batching_stats"], found["speculative_stats"]
    return (
        f"{found['total_requests']} requests, {found['average_latency']:.3f} s each, "
        f"{batching['avg_batch_size']:.1f} rows a batch, "
        f"{guessing['acceptance_rate']:.0%} of the guesses accepted"
    )


def configure(client: Client) -> str:
    """Set the batch size to what it is: proves the way, changes nothing."""
    now = client.call("/v1/configure")["config"]
    size = now["max_batch_size"]
    answer = client.call(f"/v1/configure?max_batch_size={size}")
    return f"{answer['status']}, at most {answer['config']['max_batch_size']} rows"


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    parser.add_argument("--api-key", help="of a server that has one")
    parser.add_argument("--admin-key", help="of a server that has one")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
