"""Calibration against figures by hand, the tasks, and a short run with the bundled model."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from decisions_eval.calibration import Judged, calibration
from decisions_eval.tasks import GROUPS, Group

from tests.waiting import PATIENCE_S

SCRIPT = Path(__file__).parents[2] / "scripts" / "eval_decisions.py"


def test_calibration_by_hand() -> None:
    # Two answers of 0.9 (one right), two of 0.6 (both right).
    found = calibration([Judged(0.9, True), Judged(0.9, False)] + [Judged(0.6, True)] * 2)
    assert (found.count, found.accuracy) == (4, 0.75)
    assert found.expected_error == pytest.approx((2 * 0.4 + 2 * 0.4) / 4)
    assert found.brier == pytest.approx((0.01 + 0.81 + 2 * 0.16) / 4)
    assert [(b.count, b.share) for b in found.bins] == [(2, 1.0), (2, 0.5)]


def test_drawn_answers_are_calibrated() -> None:
    """Answers that are right as often as they say have an error near 0; boasting ones have not."""
    rng = random.Random(1)
    honest = [Judged(p, rng.random() < p) for p in (rng.random() for _ in range(20_000))]
    assert calibration(honest).expected_error < 0.02
    boasting = [Judged(min(1.0, one.probability + 0.2), one.right) for one in honest]
    assert calibration(boasting).expected_error > 0.12
    assert calibration([Judged(1.0, True)]).expected_error == 0


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_tasks_have_one_right_answer(group: Group) -> None:
    for task in group.make(random.Random(5), 20):
        options = task.question.get("choices") or task.question.get("levels") or [True, False]
        values = [str(one) for one in options]
        assert len(set(values)) == len(values)
        assert 0 <= task.gold < len(values)
    again = [g.make(random.Random(5), 20) for g in (group, group)]
    assert again[0] == again[1]


def test_a_short_run(tmp_path: Path) -> None:
    figures, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    command = [
        sys.executable,
        str(SCRIPT),
        "--count",
        "8",
        "--json",
        str(figures),
        "--plot",
        str(plot),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    found = json.loads(figures.read_text())
    assert set(found) == {*(group.name for group in GROUPS), "all"}
    assert found["all"]["count"] == 8 * len(GROUPS)
    assert all(0 <= one["expected_error"] <= 1 for one in found.values())
    # Four values: a model that reads nothing gets a quarter.
    assert found["recall_text"]["accuracy"] > 0.5
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(found)
    assert plot.read_text().lstrip().startswith("<?xml")
