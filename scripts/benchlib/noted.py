"""What tests note while they run (pytest's record_property), for the tables of the documents."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[2]


def run_tests(
    tests: Sequence[str], name: str, columns: Sequence[str]
) -> tuple[int, list[dict[str, str]]]:
    """pytest's exit code, and the lines that the tests noted by this name, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        done = subprocess.run(
            [*command, f"--junitxml={report}", "-o", "junit_family=xunit1"],
            cwd=ROOT,
            stdout=sys.stderr,
            check=False,
        )
        return done.returncode, lines_of(report, name, columns)


def lines_of(report: Path, name: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """Lines of a report in JUnit's XML: values between bars, one for each column."""
    found = ElementTree.parse(report).iter("property")
    noted = [entry.get("value", "") for entry in found if entry.get("name") == name]
    return [dict(zip(columns, line.split("|"), strict=True)) for line in noted]
