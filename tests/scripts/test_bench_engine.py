"""bench_engine.py: a short run of its scenarios."""

from __future__ import annotations

import json
import math
from pathlib import Path

from tests.scripts.runner import succeed


def test_bench_engine_runs_its_scenarios(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    listed = [line.split()[0] for line in succeed("bench_engine.py", "--list").splitlines()]
    # These run the bundled models on long tasks, whatever --model-path says: minutes.
    names = [name for name in listed if name not in ("speculation", "table")]
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
