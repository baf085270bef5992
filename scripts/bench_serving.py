#!/usr/bin/env python3
"""Measures OpenAI-compatible servers over HTTP, several of them alternating in one run.

    scripts/bench_serving.py --url http://127.0.0.1:8000
    scripts/bench_serving.py --url ours=http://127.0.0.1:8000 --url other=http://127.0.0.1:9000
    scripts/bench_serving.py --spawn ours="mlx_parallm_serve --port {port}"
    scripts/bench_serving.py --against mlx_lm --model-path 27m --concurrency 1,8,32

`--against mlx_lm` compares this project's server with mlx_lm.server, with the same BLAS
and as pip installs it. Speeds of a shared machine drift, so the servers take turns in
rounds, and what counts are the ratios. Output tokens are those of each answer's `usage`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bench_models
from benchlib.load_client import Run, Target, closed_loop, open_loop
from benchlib.servers import SpawnedServer, SpawnError, mlx_lm_command, our_command, spawn
from benchlib.table import format_table, percentile, ratio

SAMPLING: dict[str, list[dict[str, Any]]] = {
    "greedy": [{"temperature": 0}],
    "plain": [{"temperature": 1.0}],
    "top_p": [{"temperature": 0.8, "top_p": 0.95}],
    "mixed": [
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_p": 0.95},
        {"temperature": 0.7, "top_k": 40},
        {"temperature": 0.9, "min_p": 0.05},
        {"temperature": 0.7, "repetition_penalty": 1.1},
    ],
}


@dataclass
class Server:
    """One side of the comparison.

    Attributes:
        model: the `model` field of its requests.
        runs: (clients -> runs), one run a round.
        cpu: (clients -> CPU seconds the server used), where it was spawned here.
    """

    name: str
    url: str
    model: str
    spawned: SpawnedServer | None = None
    runs: dict[int, list[Run]] = field(default_factory=lambda: defaultdict(list))
    cpu: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    def is_slow(self, clients: int, limit_s: float) -> bool:
        """Whether a round took so long that one must do."""
        return any(run.seconds > limit_s for run in self.runs[clients])


def main() -> None:
    """Run what the command line asks for; print a table, and write JSON where asked."""
    args = _arguments()
    with contextlib.ExitStack() as stack:
        try:
            servers = list(_servers(args, stack))
        except (SpawnError, ValueError, OSError) as error:
            sys.exit(f"bench_serving: {error}")
        _measure_all(servers, args)
    results = [row for clients in args.concurrency for row in _rows(servers, clients)]
    ratios = _ratios(results)
    print(format_table(results))
    if ratios:
        print("\n" + format_table(ratios))
    if args.json:
        report = {"settings": _settings(args), "results": results, "ratios": ratios}
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    if any(row["failed"] for row in results):
        sys.exit(1)


# --- servers ------------------------------------------------------------------------------


def _servers(args: argparse.Namespace, stack: contextlib.ExitStack) -> Iterator[Server]:
    headers = _headers(args)
    for number, text in enumerate(args.url):
        name, url = _named(text, f"server{number + 1}" if number else "server")
        yield Server(name, url.rstrip("/"), args.model or _first_model(url, headers))
    for name, command, model in _commands(args):
        print(f"starting {name} ...", file=sys.stderr)
        spawned = stack.enter_context(spawn(name, command))
        model = model or args.model or _first_model(spawned.url, headers)
        yield Server(name, spawned.url, model, spawned)


def _commands(args: argparse.Namespace) -> Iterator[tuple[str, str | list[str], str]]:
    """Name, command and model field ("" to ask) of each server to start."""
    for number, text in enumerate(args.spawn):
        name, command = _named(text, f"spawned{number + 1}")
        yield name, command, ""
    if not args.against:
        return
    model = _model_folder(args.model_path)
    yield "mlx_parallm", our_command(model), ""
    if args.against == "mlx_lm":
        # It loads a second copy under any other name than this one.
        yield "mlx_lm", mlx_lm_command(model, fast_blas=True), "default_model"
        if not args.no_stock:
            yield "mlx_lm-stock", mlx_lm_command(model, fast_blas=False), "default_model"
    else:
        program = [args.llama_server, "--model", str(args.gguf), "--port", "{port}"]
        context = (args.prompt_tokens + args.output_tokens + 64) * max(args.concurrency)
        slots = ["--parallel", str(max(args.concurrency)), "--ctx-size", str(context)]
        yield "llama-server", [*program, *slots], ""


def _named(text: str, default: str) -> tuple[str, str]:
    """NAME=REST, where a name has no slash and no space."""
    name, found, rest = text.partition("=")
    if found and "/" not in name and " " not in name:
        return name, rest
    return default, text


def _model_folder(text: str) -> Path:
    return bench_models.ensure(text) if text in bench_models.SHAPES else Path(text)


def _headers(args: argparse.Namespace) -> dict[str, str]:
    return {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}


def _first_model(url: str, headers: dict[str, str]) -> str:
    request = urllib.request.Request(f"{url.rstrip('/')}/v1/models", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as response:
        models = json.load(response)["data"]
    if not models:
        raise ValueError(f"{url} lists no model; name one with --model")
    return str(models[0]["id"])


# --- load ---------------------------------------------------------------------------------


def _measure_all(servers: list[Server], args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    for server in servers:
        _run(server, args, rng, clients=1, count=1)  # loads what is loaded lazily
    for clients in args.concurrency:
        for number in range(args.rounds):
            # Every other round goes backwards, so that no side is always first.
            for server in servers if number % 2 == 0 else servers[::-1]:
                if server.is_slow(clients, args.slow_s):
                    continue
                before = server.spawned.cpu_seconds() if server.spawned else None
                run = _run(server, args, rng, clients, args.requests or 2 * clients)
                server.runs[clients].append(run)
                if server.spawned and before is not None:
                    server.cpu[clients] += (server.spawned.cpu_seconds() or 0) - before
                speed = sum(reply.output_tokens for reply in run.replies) / run.seconds
                print(f"{server.name}, {clients} clients: {speed:.1f} tokens/s", file=sys.stderr)


def _run(
    server: Server, args: argparse.Namespace, rng: random.Random, clients: int, count: int
) -> Run:
    chat = args.endpoint == "chat"
    target = Target(
        server.url, "/v1/chat/completions" if chat else "/v1/completions", _headers(args)
    )
    bodies = _bodies(server.model, args, rng, count)
    requests = [target.request(body) for body in bodies]
    if args.rate:
        return asyncio.run(open_loop(target, requests, args.rate, args.seed, args.timeout))
    return asyncio.run(closed_loop(target, requests, clients, args.timeout))


def _bodies(
    model: str, args: argparse.Namespace, rng: random.Random, count: int
) -> Iterator[dict[str, Any]]:
    shared = round(args.prompt_tokens * args.shared_prefix)
    prefix = _prompt(args, random.Random(args.seed), shared)
    mix = SAMPLING[args.sampling]
    for number in range(count):
        prompt = prefix + _prompt(args, rng, args.prompt_tokens - shared)
        body: dict[str, Any] = {"model": model, "max_tokens": args.output_tokens}
        if args.endpoint == "chat":
            body["messages"] = [{"role": "user", "content": prompt}]
        else:
            body["prompt"] = prompt
        body |= mix[number % len(mix)]
        if not args.no_ignore_eos:
            body["ignore_eos"] = True  # servers that do not know it take it as nothing
        if not args.no_stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        yield body


def _prompt(args: argparse.Namespace, rng: random.Random, count: int) -> Any:
    """`count` random tokens: ids, or words of one token each in the benchmark models."""
    if args.prompt_format == "ids":
        return [rng.randrange(args.vocabulary // 8, args.vocabulary) for _ in range(count)]
    return bench_models.words(count, args.vocabulary, rng)


# --- figures ------------------------------------------------------------------------------


def _rows(servers: list[Server], clients: int) -> list[dict[str, Any]]:
    return [_row(server, clients) for server in servers if server.runs[clients]]


def _row(server: Server, clients: int) -> dict[str, Any]:
    runs = server.runs[clients]
    replies = [reply for run in runs for reply in run.replies]
    good = [reply for reply in replies if not reply.error]
    for error in sorted({reply.error for reply in replies if reply.error})[:3]:
        print(f"{server.name}: {error}", file=sys.stderr)
    seconds = sum(run.seconds for run in runs)
    row: dict[str, Any] = {
        "server": server.name,
        "clients": clients,
        "requests": len(replies),
        "failed": len(replies) - len(good),
        "prompt": _mean([reply.prompt_tokens for reply in good]),
        "output": _mean([reply.output_tokens for reply in good]),
        "tokens/s": round(statistics.median(_speed(run) for run in runs), 1),
    }
    row |= _times("first ms", [r.first_token for r in good if r.first_token is not None])
    row |= _times("gap ms", [gap for reply in good for gap in reply.gaps])
    row |= _times("answer ms", [reply.latency for reply in good])
    row["client cpu"] = round(sum(run.client_cpu for run in runs) / seconds, 3)
    row["server cpu"] = round(server.cpu[clients] / seconds, 2) if server.spawned else None
    return row


def _speed(run: Run) -> float:
    return sum(reply.output_tokens for reply in run.replies if not reply.error) / run.seconds


def _mean(values: list[int]) -> float:
    return round(statistics.fmean(values), 1) if values else 0.0


def _times(name: str, seconds: list[float]) -> dict[str, float | None]:
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    found = {label: percentile(seconds, share) for label, share in shares.items()}
    return {f"{name} {k}": None if v is None else round(1000 * v, 1) for k, v in found.items()}


def _ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first server against each other one; over 1 is in the first one's favour."""
    found = []
    for clients in dict.fromkeys(row["clients"] for row in rows):
        first, *others = [row for row in rows if row["clients"] == clients]
        found += [_compared(first, other) for other in others]
    return found


def _compared(first: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    times = {"first p50": "first ms p50", "first p95": "first ms p95"}
    times |= {"gap p50": "gap ms p50", "gap p99": "gap ms p99"}
    return {
        "ratio": f"{first['server']} / {other['server']}",
        "clients": first["clients"],
        "throughput": ratio(first["tokens/s"], other["tokens/s"]),
        **{name: ratio(other[column], first[column]) for name, column in times.items()},
    }


# --- command line -------------------------------------------------------------------------


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    secret = {"api_key", "json"}
    return {
        k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k not in secret
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--url", action="append", default=[], help="[NAME=]URL of a running server; repeatable")
    add("--spawn", action="append", default=[], help="NAME=COMMAND with {port}; repeatable")
    add("--against", choices=["mlx_lm", "llama-server"], help="start ours and this one")
    add("--model-path", default="27m", help="model for --against: folder, tiny, 27m or 125m")
    add("--no-stock", action="store_true", help="leave out mlx_lm.server with its own BLAS")
    add("--llama-server", default="llama-server", help="program for --against llama-server")
    add("--gguf", type=Path, help="the same model's file for --against llama-server")
    add("--model", help="`model` field of requests; default: the first of /v1/models")
    add("--api-key", help="sent as a bearer token")
    add("--endpoint", choices=["completions", "chat"], default="completions")
    add("--concurrency", type=_numbers, default=[1, 8, 32], help="clients, such as 1,8,32")
    add("--requests", type=int, help="a round's requests; default: twice the clients")
    add("--rounds", type=int, default=3, help="how often the servers take turns")
    add("--rate", type=float, help="Poisson arrivals a second instead of waiting clients")
    add("--prompt-tokens", type=int, default=64)
    add("--output-tokens", type=int, default=64)
    add("--shared-prefix", type=float, default=0.0, help="share (0..1) that prompts begin with")
    add("--prompt-format", choices=["text", "ids"], default="text")
    add("--vocabulary", type=int, help="tokens that prompts draw from; default: the model's")
    add("--sampling", choices=sorted(SAMPLING), default="greedy")
    add("--no-stream", action="store_true", help="ask for whole answers")
    add("--no-ignore-eos", action="store_true", help="for servers that refuse unknown fields")
    add("--timeout", type=float, default=900, help="seconds for one request")
    add("--slow-s", type=float, default=60, help="a slower round is not repeated")
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="file for settings, results and ratios")
    args = parser.parse_args()
    if not (args.url or args.spawn or args.against):
        parser.error("name a server: --url, --spawn or --against")
    if args.against == "llama-server" and not args.gguf:
        parser.error("--against llama-server needs --gguf")
    if args.endpoint == "chat" and args.prompt_format == "ids":
        parser.error("chat has no token-id prompts")
    if args.vocabulary is None:
        shape = bench_models.SHAPES.get(args.model_path) if args.against else None
        args.vocabulary = shape.vocabulary if shape else 1024
    return args


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("clients are at least 1")
    return numbers


if __name__ == "__main__":
    main()
