#!/usr/bin/env python3
"""The table of GGUF files: models by file types, with the largest error against llama.cpp.

    scripts/gguf_table.py

Runs the tests that compare GGUF files with llama.cpp (its wheel is part of the `dev` extra; real
models come from the package index) and prints what they have measured: at how many positions
the likeliest token is the same, and the largest difference of a log-probability of llama.cpp's
five likeliest tokens, in nats.
"""

from __future__ import annotations

import in_venv  # noqa: F401  isort: skip  (starts this script again in .venv)

import argparse
import sys

from benchlib.noted import run_tests
from benchlib.table import format_table

TESTS = (
    "tests/models/gguf/test_architectures.py",
    "tests/models/test_gguf_types.py",
    "tests/models/test_gguf_real.py",
)
COLUMNS = ("model", "file type", "positions", "same likeliest", "error")


def by_model(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """One line for each model and type: all positions, and the largest error at any of them."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        known = found.setdefault((line["model"], line["file type"]), line)
        if known is not line:
            for column in ("positions", "same likeliest"):
                known[column] = str(int(known[column]) + int(line[column]))
            known["error"] = max(known["error"], line["error"], key=float)
    return list(found.values())


def main() -> None:
    """Run, and print the table."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    code, lines = run_tests(TESTS, "gguf", COLUMNS)
    print(format_table(by_model(lines)))
    sys.exit(code)


if __name__ == "__main__":
    main()
