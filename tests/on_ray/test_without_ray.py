"""Without Ray its application says what to install."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_it_says_what_to_install() -> None:
    command = [sys.executable, "-m", "mlx_parallm.ray_app"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'mlx_parallm[ray]'" in done.stderr.splitlines()[-1]
