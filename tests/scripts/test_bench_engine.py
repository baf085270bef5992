"""bench_engine.py: a short run of its scenarios."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchlib.scenarios import Bench, BenchError, _median_step, full_steps
from benchlib.work import Side, Timing, Work

from tests.scripts.runner import run, succeed


def test_bench_engine_runs_its_scenarios(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    listed = [line.split()[0] for line in succeed("bench_engine.py", "--list").splitlines()]
    # These run the bundled models on long tasks, whatever --model-path says: minutes.
    long = {"speculation", "table"}
    elsewhere = {"rows", "profile"}  # test_gpu_rehearsal.py
    names = [name for name in listed if name not in long | elsewhere]
    small = ["--quick", "--model-path", str(tiny), "--json", str(out)]
    succeed("bench_engine.py", *small, "--scenario", *names)
    found = json.loads(out.read_text())["scenarios"]
    assert list(found) == names
    numbers = [v for rows in found.values() for row in rows for v in row.values()]
    assert all(math.isfinite(v) and v >= 0 for v in numbers if isinstance(v, (int, float)))
    assert found["budget"][0]["finished"] == 64
    assert {row["side"] for row in found["greedy"]} == {
        "mlx_parallm", "BatchGenerator", "plain loop",
    }  # fmt: skip


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    done = run("bench_engine.py", "--model-path", str(tmp_path / "nothing"))
    assert done.returncode == 1
    assert "no folder with a model" in done.stderr


class Slow(Side):
    """Rows come one after the other, a step apart, and steps take a second."""

    name = "slow"

    def run(self, work: Sequence[Work], *, late: Sequence[tuple[int, Work]] = ()) -> Timing:
        """As a model whose prompts take long."""
        return Timing([[float(40 * r + t) for t in range(w.tokens)] for r, w in enumerate(work)])


def test_rows_get_more_tokens_until_all_of_them_decode_together(tiny: Path) -> None:
    bench = Bench(tiny)
    # Row 7 begins at 280 s: 64, 128 and 256 tokens are too few.
    tokens, steps = full_steps(bench, Slow(), 8)
    assert (tokens, set(steps)) == (512, {1.0})
    assert _median_step([Slow().run(bench.work(8, 64))]) is None
    with pytest.raises(BenchError, match="within the model's context"):
        full_steps(bench, Slow(), 60)
