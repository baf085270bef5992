"""bench_observing.py: a short run."""

from __future__ import annotations

from tests.scripts.runner import succeed


def test_every_part_is_measured() -> None:
    sizes = ("--clients", "2", "--requests", "2", "--tokens", "4")
    lines = succeed("bench_observing.py", "--model-path", "bundled", *sizes).splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    assert table[0] == ["clients", "ms/token", "metrics %", "logs %", "traces %", "all %"]
    assert [row[0] for row in table[2:]] == ["2"]
    for row in table[2:]:
        metrics, logs = float(row[2]), float(row[3])
        assert metrics > 0 and logs > 0 and float(row[5]) < 100
