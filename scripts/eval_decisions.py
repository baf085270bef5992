#!/usr/bin/env python3
"""Accuracy and calibration of /v1/decisions, on questions that the script makes itself.

    scripts/eval_decisions.py                                # the bundled model
    scripts/eval_decisions.py --model FOLDER --plot reliability.svg
    scripts/eval_decisions.py --url http://127.0.0.1:8000 --count 200

Prints a Markdown table: of each kind of question how many likeliest answers were right, and the
expected calibration error of their probabilities. `--short` asks fewer, for CI.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import json
import random
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bundled.client import Client, serve
from decisions_eval.asking import judged_all
from decisions_eval.calibration import Calibration, Judged, calibration
from decisions_eval.tasks import GROUPS

ROOT = Path(__file__).resolve().parent.parent


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=ROOT / "mlx_parallm/models/bundled")
    parser.add_argument("--url", help="a running server; default: start one with --model")
    parser.add_argument("--count", type=int, default=100, help="questions of each kind")
    parser.add_argument("--short", action="store_true", help="20 questions of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the questions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a reliability plot")
    return parser.parse_args()


def measure(client: Client, count: int, seed: int) -> dict[str, Calibration]:
    """The figures of each kind of question, and of all."""
    every: list[Judged] = []
    found = {}
    for group in GROUPS:
        tasks = group.make(random.Random(f"{seed} {group.name}"), count)
        mine = judged_all(client, tasks, group.name)
        found[group.name] = calibration(mine)
        every += mine
    return {**found, "all": calibration(every)}


def table(found: dict[str, Calibration]) -> str:
    titles = {group.name: group.title for group in GROUPS} | {"all": "All"}
    lines = ["| questions | asked | right | calibration error | Brier |", "|---|---|---|---|---|"]
    lines += [
        f"| {titles[name]} | {one.count} | {one.accuracy:.1%} | {one.expected_error:.3f} "
        f"| {one.brier:.3f} |"
        for name, one in found.items()
    ]
    return "\n".join(lines)


def main() -> None:
    options = arguments()
    with ExitStack() as stack:
        client = Client(options.url or stack.enter_context(serve(options.model)))
        found = measure(client, 20 if options.short else options.count, options.seed)
    print(table(found))
    if options.json:
        figures = {name: asdict(one) for name, one in found.items()}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if options.plot:
        # It takes a second to load.
        from decisions_eval.plot import save

        save(found, options.plot)


if __name__ == "__main__":
    main()
