#!/usr/bin/env python3
"""Measures the engine without HTTP, against other ways to run the same model.

scripts/bench_engine.py --scenario all
scripts/bench_engine.py --scenario mixed --model-path 125m --json out.json
scripts/bench_engine.py --scenario greedy floor --model-path smollm2
scripts/bench_engine.py --list
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import bench_models
import benchlib.caching
import benchlib.many_rows
import benchlib.sharing
import benchlib.speculation
import benchlib.step_profile  # noqa: F401  likewise
from benchlib.model_files.smollm2 import ModelError
from benchlib.scenarios import SCENARIOS, Bench
from benchlib.table import format_table

from mlx_parallm.cpu import blas
from mlx_parallm.cpu.huge_pages import restart_with_huge_pages


def main() -> None:
    """Run the scenarios asked for; print their tables, and write JSON where asked."""
    restart_with_huge_pages()  # as the server does
    args = _arguments()
    if args.list:
        for name, function in SCENARIOS.items():
            print(f"{name:12} {(function.__doc__ or '').splitlines()[0]}")
        return
    try:
        folder = bench_models.folder_of(args.model_path)
    except (ModelError, ValueError) as error:
        sys.exit(f"bench_engine: {error}")
    bench = Bench(folder, rounds=1 if args.quick else args.rounds, quick=args.quick)
    report: dict[str, Any] = {"model": args.model_path, "blas": str(blas.info()), "scenarios": {}}
    print(f"model {args.model_path}, BLAS {blas.info()}\n")
    with contextlib.closing(bench):
        for name in list(SCENARIOS) if "all" in args.scenario else args.scenario:
            rows = SCENARIOS[name](bench)
            report["scenarios"][name] = rows
            print(f"{name}: {(SCENARIOS[name].__doc__ or '').splitlines()[0]}\n")
            print(format_table(rows) + "\n", flush=True)
            if args.json:
                args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--scenario", nargs="+", default=["all"], choices=["all", *SCENARIOS], metavar="NAME")
    add("--list", action="store_true", help="print the scenarios and exit")
    add("--model-path", default="27m", help="folder, smollm2 or a name of bench_models.py")
    add("--rounds", type=int, default=3, help="how often sides take turns")
    add("--quick", action="store_true", help="small sizes and one round, to see that it runs")
    add("--json", type=Path, help="file for all rows")
    return parser.parse_args()


if __name__ == "__main__":
    main()
