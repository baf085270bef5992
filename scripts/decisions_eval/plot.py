"""A reliability plot: how often answers of some probability were right."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from .calibration import Calibration

_MOST_AREA = 220.0


def save(found: Mapping[str, Calibration], path: Path) -> None:
    """Write the plot; the file's ending says its format, such as .svg or .png.

    Args:
        found: a line for each; the size of a point is its share of the answers.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot(
        xlabel="probability of the likeliest answer", ylabel="share of these that were right"
    )
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfectly calibrated")
    for name, one in found.items():
        means = [part.mean for part in one.bins]
        shares = [part.share for part in one.bins]
        (line,) = axes.plot(means, shares, label=f"{name}: error {one.expected_error:.3f}")
        sizes = [_MOST_AREA * part.count / one.count for part in one.bins]
        axes.scatter(means, shares, s=sizes, color=line.get_color(), alpha=0.6)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize="small")
    figure.savefig(path)
