"""reward.png: how the reward went."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlx_parallm.training import csv_log

FILE = "reward.png"
_WINDOW = 10  # steps of the running mean


def draw(output: Path) -> Path | None:
    """Draw the log's rewards; None where matplotlib (the `train` extra) is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    rows = csv_log.read(output)
    steps = np.array([int(row["step"]) for row in rows])
    rewards = np.array([float(row["reward"]) for row in rows])
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, rewards, ".", color="tab:blue", alpha=0.4, label="step")
    axes.plot(steps, _running_mean(rewards), color="tab:blue", label=f"mean of {_WINDOW}")
    axes.set(xlabel="step", ylabel="reward")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    file = output / FILE
    figure.savefig(file, dpi=120)
    return file


def _running_mean(values: np.ndarray) -> np.ndarray:
    means = [values[max(0, end - _WINDOW) : end].mean() for end in range(1, len(values) + 1)]
    return np.array(means)
