"""log.csv: a line a step."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

FILE = "log.csv"


class CsvLog:
    """Appends lines to a run's log.csv.

    Args:
        done: steps that stay of an earlier log; what came after them is computed again.
    """

    def __init__(self, output: Path, done: int) -> None:
        self._file = output / FILE
        rows = [row for row in read(output) if int(row["step"]) <= done]
        self._names: list[str] = list(rows[0]) if rows else []
        with self._file.open("w", newline="", encoding="utf-8") as stream:
            if rows:
                writer = csv.DictWriter(stream, self._names)
                writer.writeheader()
                writer.writerows(rows)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a step's line; the first one says which columns there are."""
        row = {"step": step, **{name: f"{value:.6g}" for name, value in values.items()}}
        with self._file.open("a", newline="", encoding="utf-8") as stream:
            if not self._names:
                self._names = list(row)
                csv.writer(stream).writerow(self._names)
            csv.DictWriter(stream, self._names, extrasaction="ignore").writerow(row)


def read(output: Path) -> list[dict[str, str]]:
    """The lines of a run so far; none where there is no log."""
    file = output / FILE
    if not file.is_file():
        return []
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
