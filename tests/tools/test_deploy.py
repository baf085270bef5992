"""The files for systemd and launchd: correct, and in step with how long a clean end may take."""

from __future__ import annotations

import configparser
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.options.loading import load_settings
from mlx_parallm.tools.serve_many import DRAIN_MARGIN_S

DEPLOY = Path(__file__).parents[2] / "deploy"
LONGEST_END_S = load_settings([]).drain_timeout + DRAIN_MARGIN_S
PROGRAM = "/opt/mlx_parallm/.venv/bin/mlx_parallm"


def read_unit() -> configparser.ConfigParser:
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "mlx_parallm.service")
    return unit


def read_plist() -> dict[str, Any]:
    with (DEPLOY / "mlx_parallm.plist").open("rb") as file:
        found: dict[str, Any] = plistlib.load(file)
    return found


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    text = (DEPLOY / "mlx_parallm.service").read_text()
    unit = tmp_path / "mlx_parallm.service"
    unit.write_text(text.replace(PROGRAM, sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    ours = [line for line in done.stderr.splitlines() if "mlx_parallm" in line]
    assert (done.returncode, ours) == (0, [])


def test_the_unit_starts_again_and_leaves_time_for_a_clean_end() -> None:
    service = read_unit()["Service"]
    assert service["Restart"] == "always"
    assert service["KillMode"] == "mixed"
    assert float(service["TimeoutStopSec"]) > LONGEST_END_S
    assert service["EnvironmentFile"] == "-/etc/mlx_parallm/environment"
    assert service["ExecStart"].startswith(f"{PROGRAM} serve-many ${{REPLICAS}} ")


def test_the_plist_starts_again_and_leaves_time_for_a_clean_end() -> None:
    plist = read_plist()
    assert plist["KeepAlive"] is True and plist["RunAtLoad"] is True
    assert plist["ExitTimeOut"] > LONGEST_END_S


def test_the_plist_runs_the_program_with_the_environment_file(tmp_path: Path) -> None:
    program = tmp_path / "mlx_parallm" / ".venv" / "bin" / "mlx_parallm"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$$ $* key=$MLX_PARALLM_API_KEY"\n')
    program.chmod(0o755)
    settings = tmp_path / ".config" / "mlx_parallm" / "environment"
    settings.parent.mkdir(parents=True)
    log = tmp_path / "Library" / "Logs" / "mlx_parallm.log"
    log.parent.mkdir(parents=True)

    def said() -> str:
        command = read_plist()["ProgramArguments"]
        with subprocess.Popen(command, env={"HOME": str(tmp_path)}) as process:
            assert process.wait() == 0
        number, _, text = log.read_text().splitlines()[-1].partition(" ")
        assert int(number) == process.pid  # signals of launchd reach the program itself
        return text

    assert said() == "serve-many 2 --exit-on-engine-failure key="
    shutil.copy(DEPLOY / "environment.example", settings)
    with settings.open("a") as file:
        file.write("REPLICAS=3\n")
    assert said() == "serve-many 3 --exit-on-engine-failure key=sk-change-this"


def test_the_example_of_the_environment_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (DEPLOY / "environment.example").read_text().splitlines()
    for line in lines:
        if not line.startswith("#"):
            monkeypatch.setenv(*line.split("=", 1))
    settings = load_settings([])
    assert settings.api_key == ("sk-change-this",)
    assert settings.admin_key == ("sk-change-this-too",)
