#!/usr/bin/env python3
"""merge_locks.py RUNTIME ALL: one lock file of two sections from two of uv's; for scripts/lock.

Both list requirements with their hashes; ALL is for the development tools too. Versions and
markers are those of ALL. `scripts/serve` installs the first section alone.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

HEADER = (
    "# Made by scripts/lock. Install with: pip install --require-hashes -r requirements.lock.txt"
)


def entries(path: str) -> list[str]:
    """Each requirement with its marker and hashes, as it stands in the file."""
    return re.findall(r"^[a-z0-9](?:.*\\\n)*.*\n", Path(path).read_text(), re.MULTILINE)


def head(entry: str) -> str:
    """The name with its extras: "mlx[cpu]"."""
    return entry.split("==")[0]


def without_extras(entry: str) -> str:
    return re.sub(r"\[.*?\]", "", entry, count=1)


def merge(runtime: list[str], everything: list[str]) -> str:
    plain = {head(entry) for entry in everything if "[" not in head(entry)}
    # pip wants a pin for a[b] and one for a, and in hash mode it fails for want of either.
    added = [without_extras(e) for e in everything if head(without_extras(e)) not in plain]
    ordered = sorted({*everything, *added}, key=lambda entry: entry.split(" \\")[0])
    needed = {head(entry) for entry in runtime}
    sections = {
        "runtime": [entry for entry in ordered if head(entry) in needed],
        "dev": [entry for entry in ordered if head(entry) not in needed],
    }
    return HEADER + "\n" + "".join(f"\n# === {s} ===\n{''.join(e)}" for s, e in sections.items())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runtime", help="what the server needs")
    parser.add_argument("all", help="what the development tools need too")
    args = parser.parse_args()
    print(merge(entries(args.runtime), entries(args.all)), end="")
