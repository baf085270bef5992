"""Three small plots over the number of replicas: what is found, how long it takes, its price."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_PLOTS = (("found %", False), ("first p99 ms", True), ("cost of 1M tokens", True))


def save(rows: Sequence[Mapping[str, Any]], path: Path, title: str, limit: float | None) -> None:
    """Write the plots; the file's ending says its format, such as .svg or .png.

    Args:
        rows: of simulate_fleet.py's table.
        limit: replicas that the router can feed, drawn as a line; None is not known.
    """
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(title, fontsize="medium")
    for axes, (name, logarithmic) in zip(figure.subplots(1, len(_PLOTS)), _PLOTS, strict=True):
        for routing in dict.fromkeys(row["routing"] for row in rows):
            chosen = [row for row in rows if row["routing"] == routing]
            sizes = [row["replicas"] for row in chosen]
            axes.plot(sizes, [row[name] for row in chosen], marker="o", label=routing)
        if limit is not None:
            axes.axvline(limit, color="grey", linestyle=":", label="the router's limit")
        axes.set(xscale="log", xlabel="replicas", title=name)
        if logarithmic:
            axes.set_yscale("log")
        else:
            axes.set_ylim(0, 100)
    axes.legend(fontsize="small")
    figure.savefig(path)
