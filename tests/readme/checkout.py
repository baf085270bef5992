"""A reader's checkout: the files of this one, an environment, and what its commands ask for."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import httpx

from tests.readme.pages import ROOT
from tests.waiting import PATIENCE_S

# Set: a clone of the last commit, whose .venv is made by its own scripts, over the network.
FRESH = bool(os.environ.get("MLX_PARALLM_FRESH"))
PATIENCE = 1800.0 if FRESH else 2 * PATIENCE_S
ADDRESS = "http://127.0.0.1:8000"
_READY = re.compile(r"serves .* at (http://[\d.:]+)")
_PROGRAM = """#!{python}
import sys
from {module} import {function}
sys.exit({function}())
"""


class Checkout:
    """A folder in which the commands of the pages are run.

    Args:
        folder: does not exist yet.
        variables: for all commands.
    """

    def __init__(self, folder: Path, variables: dict[str, str]) -> None:
        self.folder = folder
        self._help: dict[str, str] = {}
        if FRESH:
            subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        else:
            _copy_files(folder)
            _lend_environment(folder)
            # What is installed is the checkout of the test; this one goes first.
            variables = variables | {"PYTHONPATH": str(folder), "PIP_NO_INDEX": "1"}
        kept = {k: v for k, v in os.environ.items() if not re.match(_UNSET, k)}
        self.variables = kept | variables
        self.variables["PATH"] = f"{folder / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"

    def run(self, command: str, typed: str = "") -> str:
        """Run a command with bash; what it printed. It must succeed."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self.folder,
            env=self.variables,
            input=typed,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    def help_of(self, script: str) -> str:
        """What a script says to --help."""
        if script not in self._help:
            self._help[script] = self.run(f"{script} --help")
        return self._help[script]

    def start(self, command: str) -> RunningServer:
        """Start a server on a free port."""
        return RunningServer(self, command)


_UNSET = r"(PYTHONPATH|VIRTUAL_ENV|HF_.*|MLX_PARALLM_.*|PYTEST_.*)$"


class RunningServer:
    """A command that serves, until `stop`."""

    def __init__(self, checkout: Checkout, command: str) -> None:
        self.command = command
        self._log = checkout.folder.parent / f"server-{time.monotonic_ns()}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", f"exec {command} --port 0"],
                cwd=checkout.folder,
                env=checkout.variables,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.url = self._wait()

    def _wait(self) -> str:
        until = time.monotonic() + PATIENCE
        while not (found := _READY.search(self._log.read_text())):
            ended = self._process.poll() is not None
            assert not ended and time.monotonic() < until, self._said()
            time.sleep(0.05)
        return found[1]

    def _said(self) -> str:
        return f"{self.command}\n{self._log.read_text()[-3000:]}"

    def answers(self) -> bool:
        """Whether it completes a prompt."""
        key = re.search(r"--api-key (\w+)", self.command)
        # The first one of the page's key file.
        known = key[1] if key else "sk-alice" if "--api-key-file" in self.command else None
        headers = {"Authorization": f"Bearer {known}"} if known else {}
        asked = {"prompt": "3 + 4 =", "max_tokens": 3}
        answer = httpx.post(
            f"{self.url}/v1/completions", json=asked, headers=headers, timeout=PATIENCE
        )
        return answer.status_code == 200 and bool(answer.json()["choices"])

    def stop(self) -> None:
        """Ctrl-C; it must end well."""
        os.killpg(self._process.pid, signal.SIGINT)
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            raise
        assert code == 0, self._said()


def _copy_files(folder: Path) -> None:
    """The files that git knows or would know; all, where there is no git."""
    folder.mkdir()
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    found = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True)
    if found.returncode != 0:
        ignore = shutil.ignore_patterns(".venv", "__pycache__", ".*_cache")
        shutil.copytree(ROOT, folder, dirs_exist_ok=True, ignore=ignore)
        return
    for name in filter(None, found.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def _lend_environment(folder: Path) -> None:
    """A .venv that is the one the tests run in, but for this package's own commands."""
    lender, venv = Path(sys.prefix), folder / ".venv"
    (venv / "bin").mkdir(parents=True)
    for name in ("lib", "pyvenv.cfg"):
        (venv / name).symlink_to(lender / name)
    for file in (lender / "bin").iterdir():
        (venv / "bin" / file.name).symlink_to(file)
    activate = venv / "bin" / "activate"
    text = activate.read_text(encoding="utf8")
    activate.unlink()
    activate.write_text(text.replace(str(lender), str(venv)), encoding="utf8")
    for name, place in commands_of(folder).items():
        module, _, function = place.partition(":")
        program = venv / "bin" / name
        program.unlink(missing_ok=True)
        program.write_text(_PROGRAM.format(python=sys.executable, module=module, function=function))
        program.chmod(0o755)
    _mark_installed(folder)


def _mark_installed(folder: Path) -> None:
    """As scripts/environment.sh does after it has installed."""
    script = """. scripts/environment.sh
        cat pyproject.toml requirements.lock.txt | cksum; echo "${PYTHON:-} $root\""""
    state = subprocess.run(
        ["bash", "-c", script], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    for kind in ("runtime", "dev"):
        (folder / ".venv" / f".installed-{kind}").write_text(state)


def commands_of(folder: Path) -> dict[str, str]:
    """The commands that pyproject.toml installs: name -> "module:function"."""
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf8"))["project"]
    return dict(project["scripts"])
