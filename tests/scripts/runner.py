"""Runs scripts as users do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.waiting import PATIENCE_S

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script with arguments, and with these variables in its environment too."""
    command = [sys.executable, str(SCRIPTS / name), *arguments]
    variables = os.environ | environment
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE_S, env=variables
    )


def succeed(name: str, *arguments: str, **environment: str) -> str:
    """Run a script that must succeed; its standard output."""
    done = run(name, *arguments, **environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
