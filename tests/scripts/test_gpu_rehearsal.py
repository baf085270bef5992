"""gpu_rehearsal.sh: its quick form, on whatever device is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts.runner import SCRIPTS

SCRIPT = SCRIPTS / "gpu_rehearsal.sh"


def test_quick(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "REHEARSAL_OUT": str(tmp_path)}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    done = subprocess.run(
        ["bash", str(SCRIPT), "--quick"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    engine = json.loads((tmp_path / "engine-tiny-4bit.json").read_text())["scenarios"]
    assert list(engine) == ["rows", "profile", "floor"]
    assert {(row["rows"], row["side"]) for row in engine["rows"]} == {
        (rows, side) for rows in (1, 3) for side in ("mlx_parallm", "BatchGenerator")
    }
    assert all(row["peak MB"] > 0 and row["tokens/s"] > 0 for row in engine["rows"])
    assert engine["floor"][0]["step / floor"] > 0
    whole, *functions = engine["profile"]
    assert whole["own ms a step"] > 0
    assert len(functions) >= 10
    assert functions[0]["own ms a step"] > 0
    assert any(".py:" in row["function"] for row in functions)
    serving = json.loads((tmp_path / "serving.json").read_text())["results"]
    assert [result["load"] for result in serving] == ["tiny-4bit-16-6-1", "tiny-4bit-16-6-3"]
    for result in serving:
        assert list(result["runs"]) == ["mlx_parallm", "mlx_lm.server"]
    assert "ours over" in (tmp_path / "serving.md").read_text()


def test_what_failed_is_told_at_the_end(tmp_path: Path) -> None:
    """Everything goes on after a part that fails, and the script fails with it."""
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\ncase $1 in scripts/bench_engine.py) exit 3;; esac\nexit 0\n")
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPT), "--quick"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHON": str(fake), "REHEARSAL_OUT": str(tmp_path / "out")},
    )
    assert done.returncode == 1
    assert "## serving" in done.stdout
    assert done.stdout.endswith("FAILED: engine-tiny-4bit\n")


@pytest.mark.parametrize("argument", ["--fast", "quick"])
def test_a_wrong_argument_is_told(argument: str) -> None:
    done = subprocess.run(["bash", str(SCRIPT), argument], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage" in done.stderr
