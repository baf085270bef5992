#!/usr/bin/env python3
"""Measures replicas behind smg: many clients through two, and what the router itself costs.

    scripts/bench_replicas.py --clients 1000
    scripts/bench_replicas.py --router
    scripts/bench_replicas.py --model-path instant     # no model: what clients and router can do

The first form sends all clients through the router to two servers and then half of them to one;
where it can, each server has a processor of its own, so that the second is not slower
only because two share what one had. Nothing may be lost, and first tokens should come as they do
from one. --router puts a server behind smg that answers at once, and says how much of the
router's own time a request and an event of a stream take: that bounds how many replicas it feeds.
Needs the extra `replicas`.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import random
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bench_models
from benchlib import instant_server
from benchlib.load_client import Run, Target, closed_loop
from benchlib.model_files.smollm2 import ModelError
from benchlib.servers import SpawnedServer, SpawnError, our_command, spawn
from benchlib.serving import machine
from benchlib.serving.comparison import first_model
from benchlib.table import format_table, percentile

from mlx_parallm.settings import Settings
from mlx_parallm.tools.router import router_command

_PATH = "/v1/completions"
_POLICY = "cache_aware"
_ROUTER_CLIENTS = 32
_ROUTER_EVENTS = 64
_READY_S = 60.0


def main() -> None:
    """Measure what is asked for, print a table; exit code 1 where a request was lost."""
    args = _arguments()
    if importlib.util.find_spec("smg") is None:
        sys.exit("bench_replicas: it needs the extra `replicas`: pip install 'smg>=1.13,<2'")
    before = machine.load_average()
    try:
        rows = measure_router(args) if args.router else measure_clients(args)
    except (SpawnError, ModelError, ValueError) as error:
        sys.exit(f"bench_replicas: {error}")
    print(format_table(rows))
    print(f"\n{machine.describe()}; load average at the start {before}.")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if any(row["lost"] for row in rows):
        sys.exit(1)


# --- many clients -------------------------------------------------------------------------


def measure_clients(args: argparse.Namespace) -> list[dict[str, Any]]:
    """All clients through the router to two servers, then half of them on one server."""
    command = _server_command(args.model_path)
    rows = []
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_pinned(command, place)) for place in range(2)]
        router = stack.enter_context(_router([server.url for server in servers]))
        for name, server, clients in (
            # First: the router would still think of what it had not sent.
            ("two behind smg", router, args.clients),
            ("one server", servers[0], args.clients // 2),
        ):
            began = [one.cpu_seconds() or 0.0 for one in servers]
            run = _load(args, server.url, clients)
            used = [one.cpu_seconds() or 0.0 for one in servers]
            row = {"what": name, "clients": clients} | _figures(run)
            each = (after - before for after, before in zip(used, began, strict=True))
            row["servers' CPU s"] = " + ".join(f"{seconds:.1f}" for seconds in each)
            rows.append(row)
    return rows


def _server_command(model: str) -> list[str]:
    if model == instant_server.MODEL:
        return [sys.executable, str(Path(instant_server.__file__)), "{port}"]
    return our_command(bench_models.folder_of(model), "--log-level", "warning")


@contextlib.contextmanager
def _pinned(command: Sequence[str], place: int) -> Iterator[SpawnedServer]:
    """A server on a processor of its own, where the system lets us say so."""
    with contextlib.ExitStack() as stack:
        with _on_core(place):  # children stay where they were started
            server = stack.enter_context(spawn(f"server {place}", command))
        yield server


@contextlib.contextmanager
def _on_core(place: int) -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[place % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _router(urls: Sequence[str]) -> Iterator[SpawnedServer]:
    command = router_command("127.0.0.1", "{port}", _POLICY, urls, Settings().max_queue)
    with spawn("smg", command) as router:
        _wait_until_it_has(router.url, len(urls))
        yield router


def _wait_until_it_has(url: str, workers: int) -> None:
    """Until smg has asked all servers how busy they are; before, one of them gets everything."""
    until = time.monotonic() + _READY_S
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{url}/get_loads", timeout=_READY_S) as answer:
            if len(json.load(answer)["loads"]) == workers:
                return
        time.sleep(0.1)
    raise SpawnError(f"smg did not find {workers} servers in {_READY_S:g} s")


def _load(args: argparse.Namespace, url: str, clients: int) -> Run:
    rng = random.Random(clients)
    target, model = Target(url, _PATH), first_model(url, {})
    requests = [
        target.request(_body(model, bench_models.words(args.prompt, 1024, rng), args.output))
        for _ in range(clients * args.requests)
    ]
    return asyncio.run(closed_loop(target, requests, clients, args.timeout))


def _body(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    asked = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    return asked | {"ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}}


def _figures(run: Run) -> dict[str, Any]:
    firsts = [reply.first_token for reply in run.replies if reply.first_token is not None]
    lost = [reply.error for reply in run.replies if reply.error]
    for error in sorted(set(lost))[:5]:
        print(f"lost: {error}", file=sys.stderr)
    tokens = sum(reply.output_tokens for reply in run.replies)
    return {
        "requests": len(run.replies),
        "lost": len(lost),
        "first p50 s": _seconds(firsts, 0.5),
        "first p99 s": _seconds(firsts, 0.99),
        "whole p50 s": _seconds([reply.latency for reply in run.replies], 0.5),
        "whole p99 s": _seconds([reply.latency for reply in run.replies], 0.99),
        "tokens/s": round(tokens / run.seconds),
    }


def _seconds(values: list[float], share: float) -> float | None:
    found = percentile(values, share)
    return None if found is None else round(found, 3)


# --- the router alone ---------------------------------------------------------------------


def measure_router(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Plain requests, and streams, to a server that answers at once."""
    rows = []
    with (
        spawn("instant", _server_command(instant_server.MODEL)) as server,
        _router([server.url]) as router,
    ):
        for name, events in (("plain", 0), ("stream", _ROUTER_EVENTS)):
            target = Target(router.url, _PATH)
            body = {"model": instant_server.MODEL, "prompt": "A question. " * 32}
            asked = body | ({"stream": True, "max_tokens": events} if events else {})
            requests = [target.request(asked)] * args.router_requests
            began = router.cpu_seconds()
            run = asyncio.run(closed_loop(target, requests, _ROUTER_CLIENTS, args.timeout))
            used = router.cpu_seconds()
            lost = sum(bool(reply.error) for reply in run.replies)
            row = {"what": name, "events": events, "requests": len(requests), "lost": lost}
            row["requests/s here"] = round(len(requests) / run.seconds)
            if began is not None and used is not None:
                each = (used - began) / len(requests)
                row["router's CPU ms"] = round(each * 1e3, 3)
                row["requests/s a core"] = round(1 / each) if each else None
            rows.append(row)
    return rows


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--clients", type=int, default=1000, help="of the router; half of them of one server")
    add("--requests", type=int, default=1, help="that each client sends, one after the other")
    add("--model-path", default="tiny", help="folder, a name of bench_models.py, or instant")
    add("--prompt", type=int, default=32, help="words of a prompt")
    add("--output", type=int, default=16, help="tokens of an answer")
    add("--router", action="store_true", help="measure what the router itself costs")
    add("--router-requests", type=int, default=3000, help="of each kind")
    add("--timeout", type=float, default=300, help="seconds for one request")
    add("--json", type=Path, help="file for the table")
    args = parser.parse_args()
    if args.clients < 2 or args.requests < 1 or args.router_requests < 1:
        parser.error("there are at least two clients and one request")
    return args


if __name__ == "__main__":
    main()
