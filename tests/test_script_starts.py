"""Every script is started as a file, from another folder, and finds its environment by itself."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_S

SCRIPTS = Path(__file__).parents[1] / "scripts"
# The interpreter that has nothing installed.
BASE_PYTHON = str(Path(sys.base_prefix) / "bin" / "python3")

NOT_STARTED = ("in_venv.py", "environment.sh")
WITH_HELP = [
    *sorted(p.name for p in SCRIPTS.glob("*.py") if p.name not in NOT_STARTED),
    "start-advanced-server.sh",
    "try_agents.sh",
]


def run(*command: str | Path, path: str | None = None, **more: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command in the root folder; without PYTHONPATH."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment = kept | {"PATH": path or os.environ["PATH"]} | more
    done = subprocess.run(
        command, env=environment, cwd="/", capture_output=True, text=True, timeout=PATIENCE_S
    )
    return done.returncode, done.stdout, done.stderr


def test_all_scripts_are_executable() -> None:
    files = [p for p in SCRIPTS.iterdir() if p.is_file() and p.name not in NOT_STARTED]
    assert [p.name for p in files if p.read_bytes()[:2] != b"#!"] == []
    assert [p.name for p in files if not os.access(p, os.X_OK)] == []


@pytest.fixture(scope="module")
def helps() -> Iterator[dict[str, Future[tuple[int, str, str]]]]:
    """Exit code, output and errors of each script's --help; two run at a time."""
    # The tests' own environment; in a checkout that has .venv it is the same one.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pool = ThreadPoolExecutor(2)
    yield {name: pool.submit(run, SCRIPTS / name, "--help", path=path) for name in WITH_HELP}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", WITH_HELP)
def test_every_script_answers_help_as_a_file(
    helps: dict[str, Future[tuple[int, str, str]]], name: str
) -> None:
    code, output, errors = helps[name].result()
    assert code == 0, errors[-2000:]
    assert "usage" in output.lower()


def make_checkout(folder: Path) -> Path:
    """A checkout with one script, which says where its interpreter belongs."""
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPTS / "in_venv.py", folder / "scripts")
    script = folder / "scripts" / "where.py"
    script.write_text("import in_venv\nimport sys\nprint(sys.prefix, *sys.argv[1:])\n")
    return script


def test_a_script_moves_into_the_environment(tmp_path: Path) -> None:
    script = make_checkout(tmp_path / "a checkout")
    venv = tmp_path / "a checkout" / ".venv"
    subprocess.run([BASE_PYTHON, "-m", "venv", "--without-pip", str(venv)], check=True)
    code, output, errors = run(BASE_PYTHON, script, "one two", "--three")
    assert (code, errors) == (0, "")
    assert output.strip() == f"{venv} one two --three"
    # Already there: it goes on, and does not start itself again and again.
    assert run(venv / "bin" / "python", script)[:2] == (0, f"{venv}\n")
    # Another environment that has MLX was somebody's choice.
    assert run(sys.executable, script)[:2] == (0, f"{sys.prefix}\n")


def test_without_an_environment_it_says_how_to_make_one(tmp_path: Path) -> None:
    script = make_checkout(tmp_path)
    code, output, errors = run(BASE_PYTHON, "-S", script)
    assert (code, output) == (1, "")
    assert errors == (
        f"where.py: MLX is not installed; run {tmp_path}/scripts/serve once: it makes .venv\n"
    )


def test_the_advanced_server_needs_no_activated_environment(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "start-advanced-server.sh", tmp_path / "scripts")

    def stand_in(file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text('#!/bin/sh\necho "$0" "$@"\n')
        file.chmod(0o755)

    def started(path: str) -> str:
        script = tmp_path / "scripts" / "start-advanced-server.sh"
        code, output, errors = run(script, "--port", "1", path=path)
        assert code == 0, errors
        program, _, arguments = output.strip().partition(" ")
        assert arguments == "--speculative off --port 1"
        return str(Path(program).resolve().relative_to(tmp_path))

    stand_in(tmp_path / "scripts" / "serve")
    assert started("/usr/bin:/bin") == "scripts/serve"
    stand_in(tmp_path / "installed" / "mlx_parallm_serve")
    assert started(f"{tmp_path}/installed:/usr/bin:/bin") == "installed/mlx_parallm_serve"
    stand_in(tmp_path / ".venv" / "bin" / "mlx_parallm_serve")
    assert started(f"{tmp_path}/installed:/usr/bin:/bin") == ".venv/bin/mlx_parallm_serve"


def test_scripts_that_need_packages_ask_for_the_environment_first() -> None:
    asking = []
    for script in sorted(SCRIPTS.glob("*.py")):
        found = [name for node in ast.parse(script.read_text()).body for name in imported(node)]
        needs_packages = [name for name in found if name not in sys.stdlib_module_names]
        if script.name not in NOT_STARTED and needs_packages:
            assert found[0] == "in_venv", script.name
            asking.append(script.name)
    assert len(asking) > 8


def imported(node: ast.AST) -> list[str]:
    """The packages that a statement imports; the language's own switches are none."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module != "__future__":
        return [str(node.module).partition(".")[0]]
    return []
