"""Streams beside schemas that are too expensive: their gaps, and how soon these are refused."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx

from benchlib.table import percentile

_STREAMS = 8
_GAPS = 40  # of each stream, before anything is measured in it


class _Streams:
    """Streams that go on until they are stopped.

    Attributes:
        gaps: seconds between two events of one stream, of all streams.
    """

    def __init__(self, url: str) -> None:
        self.gaps: list[float] = []
        self._url = url
        self._stopped = threading.Event()

    def run(self, seed: int) -> None:
        """One stream after the other."""
        body = {"prompt": "x", "max_tokens": 400, "ignore_eos": True, "seed": seed, "stream": True}
        with httpx.Client(base_url=self._url, timeout=600) as client:
            while not self._stopped.is_set():
                self._read(client, body)

    def stop(self) -> None:
        """End all of them."""
        self._stopped.set()

    def wait_for(self, gaps: int) -> list[float]:
        """The next gaps, at least so many."""
        first = len(self.gaps)
        while len(self.gaps) < first + gaps:
            time.sleep(0.01)
        return self.gaps[first:]

    def _read(self, client: httpx.Client, body: dict[str, Any]) -> None:
        last = None
        with client.stream("POST", "/v1/completions", json=body) as response:
            for line in response.iter_lines():
                now = time.perf_counter()
                if not line.startswith("data: {"):
                    continue
                if last is not None:
                    self.gaps.append(now - last)
                last = now
                if self._stopped.is_set():
                    return


@contextmanager
def _streaming(url: str) -> Iterator[_Streams]:
    streams = _Streams(url)
    with ThreadPoolExecutor(_STREAMS) as pool:
        running = [pool.submit(streams.run, seed) for seed in range(_STREAMS)]
        try:
            yield streams
        finally:
            streams.stop()
            for one in running:
                one.result()


def _refusal(client: httpx.Client, place: int) -> tuple[float, str]:
    """Milliseconds until a schema is refused, and why."""
    schema: dict[str, Any] = {"patternProperties": {f"^{i}a.*b": {} for i in range(900 - place)}}
    began = time.perf_counter()
    response = client.post("/v1/completions", json={"prompt": "x", "json_schema": schema})
    took = 1000 * (time.perf_counter() - began)
    if response.status_code != 400:
        raise RuntimeError(f"the schema was not refused: {response.status_code}")
    return took, str(response.json()["error"]["message"])


def report(url: str, schemas: int) -> str:
    """Gaps without and with schemas beside them, one schema after the other."""
    with _streaming(url) as streams, httpx.Client(base_url=url, timeout=600) as client:
        streams.wait_for(_STREAMS * _GAPS)
        plain = streams.wait_for(_STREAMS * _GAPS)
        first, took = len(streams.gaps), []
        for place in range(schemas):
            milliseconds, why = _refusal(client, place)
            took.append(milliseconds)
        beside = streams.gaps[first:]
    return (
        f"gaps of {_STREAMS} streams in ms: plain {_spread(plain)}; beside a schema "
        f"{_spread(beside)}; refused in {statistics.median(took):.0f} ms "
        f"({min(took):.0f}..{max(took):.0f}): {why}"
    )


def _spread(gaps: list[float]) -> str:
    shares = [1000 * (percentile(gaps, share) or 0.0) for share in (0.5, 0.99, 1.0)]
    return "{:.1f} (99%: {:.1f}, largest {:.1f})".format(*shares)
