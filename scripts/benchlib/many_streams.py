"""Clients that read streams, as a process of their own: url, clients, requests of each, tokens."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import httpx


def ask(url: str, clients: int, requests: int, tokens: int) -> None:
    """Let each client read streams, one after another."""
    body = {"max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}

    def one(place: int) -> None:
        with httpx.Client(base_url=url, timeout=600) as http:
            for again in range(requests):
                prompt = f"Client {place} tells its story number {again}:"
                http.post("/v1/completions", json=body | {"prompt": prompt}).raise_for_status()

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(one, range(clients)))


if __name__ == "__main__":
    address, *sizes = sys.argv[1:]
    ask(address, *map(int, sizes))
