#!/usr/bin/env python3
"""Simulates 1 to 1,000 replicas behind a router: what is found cached, first tokens, the price.

    scripts/simulate_fleet.py --measure 27m --curve curve.json --router-ms 0.5 --plot fleet.svg
    scripts/simulate_fleet.py --curve curve.json --replicas 1 10 --output 128

Replicas work in the steps of a real one, which --measure runs on this machine. All clients send
their next request when the last one is answered. Each prompt begins with one of many prefixes,
as many for each replica; a replica keeps some of them. The router is either blind (each replica
in turn) or sends a prefix where it was before, as smg does. It has one request after the other
for --router-ms, which scripts/bench_replicas.py --router measures: beyond some number of
replicas it is the limit.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from benchlib.table import format_table
from fleet_simulation.curve import Curve
from fleet_simulation.fleet import Result, simulate, some_requests
from fleet_simulation.plot import save
from fleet_simulation.replica import Machine
from fleet_simulation.routing import ROUTINGS

_SIZES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000]


def main() -> None:
    """Measure or read a curve, simulate all sizes both ways, print and draw."""
    args = _arguments()
    try:
        curve = _curve(args)
    except (OSError, ValueError) as error:
        sys.exit(f"simulate_fleet: {error}; --measure MODEL makes a curve")
    machine = Machine(
        curve.table(args.rows + args.chunk), args.rows, args.chunk, args.prefix, args.kept
    )
    rows = [
        _row(name, _run(args, machine, replicas, name), args.price)
        for replicas in args.replicas
        for name in ROUTINGS
    ]
    limit = _limit(rows, args)
    print(format_table(rows))
    if limit is not None:
        print(f"\nThe router passes {1e3 / args.router_ms:,.0f} requests a second: {limit:,.0f}")
        print("replicas, where each answers as many as one alone with what it finds cached.")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if args.plot:
        save(rows, args.plot, _title(args, curve), limit)


def _curve(args: argparse.Namespace) -> Curve:
    if args.measure is None:
        if args.curve is None:
            raise ValueError("there is no curve")
        return Curve.read(args.curve)
    curve = _measured(args.measure)
    if args.curve is not None:
        curve.write(args.curve)
    return curve


def _measured(model: str) -> Curve:
    # Imported late: without a model nothing here needs MLX.
    import bench_models
    from fleet_simulation.measuring import measure

    from mlx_parallm.cpu.huge_pages import restart_with_huge_pages

    restart_with_huge_pages()  # as the server does
    return measure(bench_models.folder_of(model), model)


def _run(args: argparse.Namespace, machine: Machine, replicas: int, routing: str) -> Result:
    clients = args.clients * replicas
    asked = some_requests(
        args.requests * clients,
        args.prefixes * replicas,
        args.prefix + args.own,
        args.output,
        args.seed,
    )
    return simulate(
        machine,
        replicas,
        ROUTINGS[routing],
        asked,
        clients=clients,
        router_s=args.router_ms / 1e3,
    )


def _row(routing: str, result: Result, price: float) -> dict[str, Any]:
    return {
        "replicas": result.replicas,
        "routing": routing,
        "found %": round(100 * result.hit_rate, 1),
        "first p50 ms": round(result.first_token(0.5) * 1e3, 1),
        "first p99 ms": round(result.first_token(0.99) * 1e3, 1),
        "tokens/s": round(result.tokens_per_second),
        "cost of 1M tokens": round(result.cost_of_million(price), 3),
    }


def _limit(rows: list[dict[str, Any]], args: argparse.Namespace) -> float | None:
    """How many replicas the router can feed, from what the smallest fleet answers."""
    if not args.router_ms:
        return None
    smallest = next(row for row in rows if row["routing"] == "prefix-affine")
    each = smallest["tokens/s"] / args.output / smallest["replicas"]
    return float(1e3 / args.router_ms / each)


def _title(args: argparse.Namespace, curve: Curve) -> str:
    return (
        f"{curve.model}, {args.clients} clients a replica, prompts of {args.prefix}+{args.own} "
        f"tokens, answers of {args.output}, {args.prefixes} prefixes a replica, {args.kept} kept"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--measure", metavar="MODEL", help="folder, or a name of bench_models.py")
    add("--curve", type=Path, help="file for what was measured, or with what was measured before")
    add("--replicas", type=int, nargs="+", default=_SIZES)
    add("--clients", type=int, default=32, help="of each replica")
    add("--requests", type=int, default=8, help="of each client")
    add("--prefixes", type=int, default=8, help="different ones, of each replica")
    add("--prefix", type=int, default=448, help="tokens")
    add("--own", type=int, default=64, help="tokens of a prompt behind its prefix")
    add("--output", type=int, default=64, help="tokens of an answer")
    add("--kept", type=int, default=16, help="prefixes that a replica keeps")
    add("--rows", type=int, default=32, help="sequences of a step")
    add("--chunk", type=int, default=256, help="prompt tokens of a step")
    add("--router-ms", type=float, default=0.0, help="that the router needs for a request")
    add("--price", type=float, default=1.0, help="of a replica an hour")
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="file for the table")
    add("--plot", type=Path, help="file for the plots, .svg or .png")
    args = parser.parse_args()
    positive = ("clients", "requests", "prefixes", "own", "output", "kept", "rows", "chunk")
    for name in positive:
        if getattr(args, name) < 1:
            parser.error(f"--{name} is at least 1")
    if min(args.replicas) < 1 or args.prefix < 0 or args.router_ms < 0:
        parser.error("there is at least one replica, and nothing is below 0")
    return args


if __name__ == "__main__":
    main()
