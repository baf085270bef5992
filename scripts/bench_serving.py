#!/usr/bin/env python3
"""Measures OpenAI-compatible servers over HTTP, several of them alternating in one run.

    scripts/bench_serving.py --preset real --json out.json
    scripts/bench_serving.py --preset real --only smollm2-130-32-8 --rounds 3
    scripts/bench_serving.py --preset gpu --only 8b-4bit
    scripts/bench_serving.py --url http://127.0.0.1:8000 --concurrency 1,8,32
    scripts/bench_serving.py --url ours=http://127.0.0.1:8000 --url other=http://127.0.0.1:9000
    scripts/bench_serving.py --spawn ours="mlx_parallm_serve --port {port}"

`--preset real` starts this project's server, mlx_lm.server with the same BLAS, and llama-server
(where the packages xllamacpp and gguf are installed), all with the same float32 weights, and
prints the tables of the README. `--preset gpu` serves models of 1B and 8B parameters, one
server at a time. A load is called MODEL-PROMPT-OUTPUT-CLIENTS, the middle two in
tokens. Speeds of a shared machine drift, so the servers take turns in rounds, and what counts
are the ratios within a round. Output tokens are those of each answer's `usage`.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import contextlib
import json
import random
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_models
from benchlib.model_files.smollm2 import ModelError
from benchlib.servers import SpawnError, spawn
from benchlib.serving import machine
from benchlib.serving.comparison import Server, Turns, available, first_model, measure
from benchlib.serving.figures import Result, ratio_rows, server_rows
from benchlib.serving.load import SAMPLING, Load
from benchlib.serving.presets import PRESETS, Preset, quick
from benchlib.table import format_table


def main() -> None:
    """Run what the command line asks for; print tables, and write JSON where asked."""
    args = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its servers end too
    load_average, results = machine.load_average(), []
    try:
        for result in _preset(args) if args.preset else _given(args):
            results.append(result)
            if args.json:  # after each load, so that a run that is stopped is not lost
                _write(args, load_average, results)
    except (SpawnError, ModelError, ValueError, OSError) as error:
        sys.exit(f"bench_serving: {error}")
    print(_tables(results))
    print(_machine(load_average, results))
    if any(run.failed for result in results for runs in result.runs.values() for run in runs):
        sys.exit(1)


# --- what to measure ----------------------------------------------------------------------


def _preset(args: argparse.Namespace) -> Iterator[Result]:
    preset = _chosen(args)
    peers = available(preset.peers)
    for missing in sorted(set(preset.peers) - set(peers)):
        print(f"{missing} is left out: pip install xllamacpp gguf", file=sys.stderr)
    rounds = 1 if args.quick else args.rounds
    turns = Turns(rounds, args.timeout, args.seed)
    yield from measure(replace(preset, peers=peers), turns)


def _chosen(args: argparse.Namespace) -> Preset:
    preset = PRESETS[args.preset]
    preset = quick(preset) if args.quick else preset
    if not args.only:
        return preset
    names = [case.name for case in preset.cases]
    models = {case.model for case in preset.cases}
    if unknown := [name for name in args.only if name not in {*names, *models}]:
        raise ValueError(f"no load or model {unknown[0]!r}; there are {', '.join(names)}")
    chosen = [case for case in preset.cases if {case.name, case.model} & set(args.only)]
    return replace(preset, cases=chosen)


def _given(args: argparse.Namespace) -> Iterator[Result]:
    """The servers and the load that the command line describes."""
    turns = Turns(args.rounds, args.timeout, args.seed)

    def make_prompt(count: int, rng: random.Random) -> Any:
        if args.prompt_format == "ids":
            return [rng.randrange(args.vocabulary // 8, args.vocabulary) for _ in range(count)]
        return bench_models.words(count, args.vocabulary, rng)

    with contextlib.ExitStack() as stack:
        servers = list(_servers(args, stack))
        for clients in args.concurrency:
            name = f"{clients} clients"
            runs = turns.alternate(name, _load(args, clients), servers, make_prompt)
            yield Result(name, runs)


def _servers(args: argparse.Namespace, stack: contextlib.ExitStack) -> Iterator[Server]:
    headers = {"Authorization": f"Bearer {args.api_key}"} if args.api_key else {}
    for number, text in enumerate(args.url):
        name, url = _named(text, f"server{number + 1}" if number else "server")
        url = url.rstrip("/")
        yield Server(name, url, args.model or first_model(url, headers), headers)
    for number, text in enumerate(args.spawn):
        name, command = _named(text, f"spawned{number + 1}")
        spawned = stack.enter_context(spawn(name, command))
        model = args.model or first_model(spawned.url, headers)
        yield Server(name, spawned.url, model, headers, spawned)


def _named(text: str, default: str) -> tuple[str, str]:
    """NAME=REST, where a name has no slash and no space."""
    name, found, rest = text.partition("=")
    if found and "/" not in name and " " not in name:
        return name, rest
    return default, text


def _load(args: argparse.Namespace, clients: int) -> Load:
    return Load(
        prompt=args.prompt_tokens,
        output=args.output_tokens,
        clients=clients,
        requests=args.requests or 2 * clients,
        sampling=args.sampling,
        rate=args.rate,
        shared_prefix=args.shared_prefix,
        chat=args.endpoint == "chat",
        stream=not args.no_stream,
        ignore_eos=not args.no_ignore_eos,
    )


# --- what came of it ----------------------------------------------------------------------


def _tables(results: list[Result]) -> str:
    rows = [row for result in results for row in server_rows(result)]
    ratios = [row for result in results for row in ratio_rows(result)]
    return "\n\n".join(format_table(table) for table in (rows, ratios) if table)


def _machine(load_average: float, results: list[Result]) -> str:
    """The machine, and whether it did anything else meanwhile."""
    runs = [run for result in results for runs in result.runs.values() for run in runs]
    busy = [run.machine for run in runs if not run.machine.idle]
    lines = [f"\n{machine.describe()}; load average at the start {load_average}."]
    if busy:
        steal = max(found.steal or 0 for found in busy)
        other = max(found.other or 0 for found in busy)
        lines.append(
            f"THE MACHINE WAS NOT IDLE in {len(busy)} of {len(runs)} runs: up to {steal:.0%} of"
            f" its CPU time was stolen by its host, up to {other:.0%} went to other processes."
        )
    elif any(run.machine.other is None for run in runs):
        lines.append("Whether it was idle cannot be known here: there is no /proc/stat.")
    else:
        lines.append(f"It was idle otherwise in all {len(runs)} runs.")
    return "\n".join(lines)


def _write(args: argparse.Namespace, load_average: float, results: list[Result]) -> None:
    secret = {"api_key", "json"}
    settings = {name: value for name, value in vars(args).items() if name not in secret}
    report = {
        "settings": settings,
        "machine": {"description": machine.describe(), "load average": load_average},
        "results": [result.as_json() for result in results],
    }
    args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


# --- command line -------------------------------------------------------------------------


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--preset", choices=sorted(PRESETS), help="loads that are set, against other servers")
    add("--only", action="append", help="of a preset this load or model only; repeatable")
    add("--quick", action="store_true", help="of a preset tiny loads, to see that it runs")
    add("--url", action="append", default=[], help="[NAME=]URL of a running server; repeatable")
    add("--spawn", action="append", default=[], help="NAME=COMMAND with {port}; repeatable")
    add("--model", help="`model` field of requests; default: the first of /v1/models")
    add("--api-key", help="sent as a bearer token")
    add("--endpoint", choices=["completions", "chat"], default="completions")
    add("--concurrency", type=_numbers, default=[1, 8, 32], help="clients, such as 1,8,32")
    add("--requests", type=int, help="a round's requests; default: twice the clients")
    add("--rounds", type=int, default=5, help="how often the servers take turns")
    add("--rate", type=float, help="Poisson arrivals a second instead of waiting clients")
    add("--prompt-tokens", type=int, default=64)
    add("--output-tokens", type=int, default=64)
    add("--shared-prefix", type=float, default=0.0, help="share (0..1) that prompts begin with")
    add("--prompt-format", choices=["text", "ids"], default="text")
    add("--vocabulary", type=int, default=1024, help="tokens that prompts draw from")
    add("--sampling", choices=sorted(SAMPLING), default="greedy")
    add("--no-stream", action="store_true", help="ask for whole answers")
    add("--no-ignore-eos", action="store_true", help="for servers that refuse unknown fields")
    add("--timeout", type=float, default=900, help="seconds for one request")
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="file for settings and all rounds")
    args = parser.parse_args()
    if bool(args.preset) == bool(args.url or args.spawn):
        parser.error("name servers (--url, --spawn) or a --preset")
    if (args.only or args.quick) and not args.preset:
        parser.error("--only and --quick choose from a --preset")
    if args.endpoint == "chat" and args.prompt_format == "ids":
        parser.error("chat has no token-id prompts")
    return args


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("clients are at least 1")
    return numbers


if __name__ == "__main__":
    main()
