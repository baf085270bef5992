#!/usr/bin/env python3
"""The table of adapters: kinds by formats by bases, with the largest error against each oracle.

    scripts/adapter_table.py

Runs the tests of adapters (PEFT's need the `rl` extra) and prints what they have measured: the
largest difference of a log-probability, in nats, of rows of several adapters in one batch.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchlib.table import format_table

ROOT = Path(__file__).parents[1]
TESTS = "tests/models/lora"
COLUMNS = ("adapter", "file", "base", "oracle", "error")


def run_tests(report: Path) -> int:
    """Write the tests' results as JUnit's XML; returns pytest's exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS]
    done = subprocess.run(
        [*command, f"--junitxml={report}", "-o", "junit_family=xunit1"],
        cwd=ROOT,
        stdout=sys.stderr,
        check=False,
    )
    return done.returncode


def lines_of(report: Path) -> list[dict[str, str]]:
    """What the tests noted, in their order."""
    found = ElementTree.parse(report).iter("property")
    noted = [entry.get("value", "") for entry in found if entry.get("name") == "adapter"]
    return [dict(zip(COLUMNS, line.split("|"), strict=True)) for line in noted]


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
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code = run_tests(report)
        lines = lines_of(report)
        print(format_table(lines if args.all else by_kind(lines)))
    sys.exit(code)


if __name__ == "__main__":
    main()
