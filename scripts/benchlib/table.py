"""Percentiles and Markdown tables."""

from __future__ import annotations

import statistics
from typing import Any


def percentile(values: list[float], share: float) -> float | None:
    """The value that `share` (0..1) of the values do not exceed; None without values."""
    if not values:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def ratio(one: float | None, other: float | None) -> float | None:
    """one / other to two places; None where one of them is missing or other is 0."""
    return round(one / other, 2) if one is not None and other else None


def format_table(rows: list[dict[str, Any]]) -> str:
    """Rows as a Markdown table; a key that a row lacks, or that is None, is a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def spread_of(rounds: list[dict[str, float]]) -> list[dict[str, Any]]:
    """A row for each figure of equal rounds: its median, least and most."""
    rows = []
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        cells = {"median": statistics.median(values), "least": min(values), "most": max(values)}
        rows.append({"what": name, **{column: f"{cell:.2f}" for column, cell in cells.items()}})
    return rows


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)
