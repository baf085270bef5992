"""bench_adapters.py runs, and measures what it says."""

from __future__ import annotations

from pathlib import Path

import bench_adapters


def test_every_case_is_measured() -> None:
    bundled = Path(bench_adapters.__file__).parents[1] / "mlx_parallm" / "models" / "bundled"
    rows = bench_adapters.measure(bundled, rounds=1, tokens=6)
    assert [row["case"] for row in rows] == list(bench_adapters.CASES)
    assert all(row["step ms"] > 0 and row["from"] <= row["over base"] <= row["to"] for row in rows)
