"""Streams of replicas that may be killed meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import httpx


def streamed(
    http: httpx.Client, prompt: str, max_tokens: int, on_event: Callable[[], object]
) -> list[str]:
    """The data of all events of a streamed completion of the bundled model.

    Args:
        on_event: called after each of them.
    """
    asked = {"model": "bundled", "prompt": prompt, "max_tokens": max_tokens}
    body = asked | {"ignore_eos": True, "stream": True}
    events = []
    with http.stream("POST", "/v1/completions", json=body) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
                on_event()
    return events
