"""bench_reloads.py runs, and finds no stale answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import bench_reloads


def test_both_kinds_of_changes() -> None:
    bundled = Path(bench_reloads.__file__).parents[1] / "mlx_parallm" / "models" / "bundled"
    rows = asyncio.run(bench_reloads.measure(bundled, reloads=4, whole_reloads=3))
    assert [row["change"] for row in rows] == ["adapter, rank 16", "whole weights"]
    assert [row["reloads"] for row in rows] == [4, 3]
    assert all(row["stale answers"] == 0 and row["ms each"] > 0 for row in rows)
    assert all(row["resident MB at last"] > row["MLX MB at last"] > 0 for row in rows)
