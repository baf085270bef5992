#!/usr/bin/env python3
"""The table of adapters: kinds by formats by bases, with the largest error against each oracle.

    scripts/adapter_table.py

Runs the tests of adapters (PEFT's need the `rl` extra) and prints what they have measured: the
largest difference of a log-probability, in nats, of rows of several adapters in one batch.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import sys

from benchlib.noted import run_tests
from benchlib.table import format_table

TESTS = "tests/models/lora"
COLUMNS = ("adapter", "file", "base", "oracle", "error")


def by_kind(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """One line for each kind, file and oracle: the bases, and the largest error on any of them."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for line in lines:
        key = (line["adapter"], line["file"], line["oracle"])
        known = found.setdefault(key, line)
        if known is not line:
            known["base"] += f", {line['base']}"
            known["error"] = max(known["error"], line["error"], key=float)
    return list(found.values())


def main() -> None:
    """Run, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="a line for each base")
    args = parser.parse_args()
    code, lines = run_tests((TESTS,), "adapter", COLUMNS)
    print(format_table(lines if args.all else by_kind(lines)))
    sys.exit(code)


if __name__ == "__main__":
    main()
