"""The command `mlx_parallm COMMAND`."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.__main__ import COMMANDS, main
from mlx_parallm.tools import bench
from mlx_parallm.tools.bench import Client, Timing
from tests.waiting import PATIENCE_S

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_parallm", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, cwd=ROOT)


def test_it_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in COMMANDS)
    serving = ["serve", "serve-many", "chat", "pull", "check", "bench"]
    assert list(COMMANDS) == [*serving, "train", "convert-adapter", "merge-lora", "version"]
    assert main([]) == 2


def test_a_wrong_command_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["srve"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'srve'; did you mean serve?" in line


@pytest.mark.parametrize(
    "name", ["serve", "bench", "train", "convert-adapter", "merge-lora", "version"]
)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert "usage: mlx_parallm" in capsys.readouterr().out


def test_version() -> None:
    shown = run("version").stdout.splitlines()
    words = [line.split(" ", 1)[0] for line in shown]
    assert words == ["mlx_parallm", "mlx", "mlx-lm", "device", "BLAS"]
    assert run("--version").stdout.splitlines() == shown


def test_the_commands_are_installed() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts["mlx_parallm"] == "mlx_parallm.__main__:main"
    assert scripts["mlx_parallm_serve"] == "mlx_parallm.cli:main"


def test_serve_says_what_is_wrong() -> None:
    done = run("serve", "--prot", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean --port?" in done.stderr


# --- bench --------------------------------------------------------------------------------


def test_bench_starts_a_server_and_measures_it() -> None:
    small = ("--concurrency", "1", "3", "--requests", "3", "--words", "8", "--tokens", "6")
    done = run("bench", "bundled", *small, "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"] == "bundled"
    for row, concurrency in zip(report["results"], (1, 3), strict=True):
        assert (row["concurrency"], row["requests"], row["output_tokens"]) == (concurrency, 3, 6)
        assert row["prompt_tokens"] >= 8
        assert 0 < row["first_token_ms"] <= row["first_token_ms_worst"]
        assert row["tokens_per_s"] > 0


def test_bench_counts_what_the_server_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five tokens, the first after 0.1 s and the others in 0.2 s more, one at a time."""

    def complete(self: Client, model: str, prompt: str, tokens: int) -> Timing:
        began = clock[0]
        clock[0] += 0.3
        return Timing(began, began + 0.1, clock[0], 12, 5)

    clock: list[Any] = [0.0]
    monkeypatch.setattr(Client, "model", lambda self: "m")
    monkeypatch.setattr(Client, "complete", complete)
    assert bench.main(["--url", "http://x/v1", "--concurrency", "1", "--requests", "4"]) == 0
    row = capsys.readouterr().out.splitlines()[3].split()
    assert row == ["1", "4", "12", "5", "100.0", "(100.0)", "20.0", "16.7"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--url", "http://127.0.0.1:9"], 1, "does not answer"),
        (["--url", "ftp://x"], 1, "not an http"),
        (["--url", "http://x", "--frobnicate"], 2, "--frobnicate"),
        (["/nowhere/at-all"], 1, "did not start"),
    ],
)
def test_bench_fails_in_one_line(
    arguments: list[str], code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(arguments) == code
    output, errors = capfd.readouterr()
    assert output == ""
    assert said in errors.splitlines()[-1]
