#!/usr/bin/env python3
"""What metrics, log lines and traces cost a server, in processor time.

scripts/bench_observing.py
scripts/bench_observing.py --model-path FOLDER --clients 1 8 32 --tokens 64 --json out.json

Every function that only observes is timed by the processor time of its thread, and all of them are
compared with what the whole process takes meanwhile; the clients are a process of their own. The
goal is at most 1%.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from benchlib.table import format_table

from mlx_parallm.engine import stats
from mlx_parallm.errors import UnsupportedError
from mlx_parallm.server import middleware
from mlx_parallm.server.listener import listen
from mlx_parallm.server.main import create_app
from mlx_parallm.server.observing.log_format import set_up_logging
from mlx_parallm.server.observing.metrics import Metrics
from mlx_parallm.server.observing.tracing import Tracer
from mlx_parallm.server.runner import Runner
from mlx_parallm.settings import Settings

# What only observes: (owner, function, which part it is).
OBSERVING: tuple[tuple[Any, str, str], ...] = (
    (stats.Counter, "step", "metrics"),
    (stats.Counter, "look", "metrics"),
    (stats.Counter, "tokens", "metrics"),
    (stats.Counter, "end", "metrics"),
    (Metrics, "on_answer", "metrics"),
    (Metrics, "on_generation", "metrics"),
    (middleware, "_log", "logs"),
    (Tracer, "on_answer", "traces"),
)


class Spent:
    """Processor seconds by part; a function that another one calls is counted once."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inside = threading.local()

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The function, timed."""

        def run(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._inside, "now", False):
                return function(*args, **kwargs)
            self._inside.now, began = True, time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[part] += time.thread_time() - began
                self._inside.now = False

        return run


class NoCollector:
    """Takes traces, and sends them to nobody."""

    def export(self, spans: Any) -> Any:
        """A batch of spans."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing is left to send."""


@contextmanager
def server(model: str, spent: Spent) -> Iterator[str]:
    """A server with everything that observes switched on; gives its address."""
    for owner, name, part in OBSERVING:
        setattr(owner, name, spent.timed(getattr(owner, name), part))
    tracer = traces()
    Tracer.to = classmethod(lambda cls, endpoint: tracer)  # type: ignore[assignment, method-assign]
    endpoint = None if tracer is None else "http://127.0.0.1:4318/v1/traces"
    app = create_app(Settings(model_path=model, otlp_traces_endpoint=endpoint))
    runner = Runner(app, drain_s=1, answer_s=20, limits=None, tls=None)
    with listen("127.0.0.1", 0) as socket:
        thread = threading.Thread(target=lambda: runner.run(sockets=[socket]))
        thread.start()
        url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        try:
            while not httpx.get(f"{url}/health", timeout=60).is_success:
                time.sleep(0.1)
            yield url
        finally:
            runner.should_exit = True
            thread.join()


def traces() -> Tracer | None:
    """None where the extra `otel` is not installed."""
    try:
        return Tracer(NoCollector())  # type: ignore[arg-type]
    except (ImportError, UnsupportedError):
        return None


def measured(url: str, spent: Spent, clients: int, requests: int, tokens: int) -> dict[str, Any]:
    """One row of the table."""
    sizes = [str(number) for number in (clients, requests, tokens)]
    spent.seconds.clear()
    began = time.process_time()
    command = [sys.executable, "-m", "benchlib.many_streams", url, *sizes]
    subprocess.run(command, cwd=Path(__file__).parent, check=True)
    whole, count = time.process_time() - began, clients * requests * tokens
    parts = {part: spent.seconds[part] for _, _, part in OBSERVING}
    shares = {f"{part} %": 100 * seconds / whole for part, seconds in parts.items()}
    row = {"clients": clients, "ms/token": 1e3 * whole / count}
    rounded = row | shares | {"all %": sum(shares.values())}
    return {name: round(value, 2) for name, value in rounded.items()}


def scrape(url: str) -> dict[str, float]:
    """What it costs when a collector reads /metrics."""
    with httpx.Client(base_url=url) as http:
        http.get("/metrics")
        began = time.process_time()
        for _ in range(20):
            http.get("/metrics").raise_for_status()
        return {"ms of one reading of /metrics": 1e3 * (time.process_time() - began) / 20}


def main() -> None:
    """Measure, and print the table."""
    args = _arguments()
    spent = Spent()
    set_up_logging("info", "json")
    handler = logging.getLogger().handlers[0]
    with Path(os.devnull).open("w") as nowhere:
        handler.setStream(nowhere)  # type: ignore[attr-defined]
        run(args, spent)


def run(args: argparse.Namespace, spent: Spent) -> None:
    """All rows of the table."""
    with server(args.model_path, spent) as url:
        measured(url, spent, max(args.clients), 1, args.tokens)  # warm
        rows = [
            measured(url, spent, clients, max(1, args.requests // clients), args.tokens)
            for clients in args.clients
        ]
        reading = scrape(url)
    print(format_table(rows))
    print(f"\n{reading}")
    if args.json:
        args.json.write_text(json.dumps({"rows": rows, **reading}, indent=2) + "\n", "utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-path", default="bundled", help="as the server takes it")
    add("--clients", type=int, nargs="+", default=[1, 8, 32])
    add("--requests", type=int, default=64, help="of all clients together")
    add("--tokens", type=int, default=64, help="of an answer")
    add("--json", type=Path, help="file for all figures")
    return parser.parse_args()


if __name__ == "__main__":
    main()
