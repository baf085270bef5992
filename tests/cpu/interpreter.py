"""New interpreters: what is loaded into a process stays there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlx_parallm.cpu import blas
from tests.waiting import PATIENCE_S

linux = pytest.mark.skipif(
    sys.platform != "linux" or "mlx_cpu" not in blas._mlx_packages(),
    reason="only the mlx-cpu wheel on Linux needs another BLAS",
)
PUBLIC = {f"cblas_{kind}gem{shape}" for kind in "sdcz" for shape in "mv"}


REPORT = """
import mlx_parallm
from mlx_parallm.cpu import blas
from dataclasses import asdict
import mlx.core as mx
answer = asdict(blas.info()) | {"product": (mx.ones((4, 4)) @ mx.ones((4, 4)))[0, 0].item()}
"""


def wheel_library() -> Path:
    library = blas._wheel_library()
    assert library is not None
    return library


def run(code: str, cache: Path, **environment: str) -> tuple[dict[str, Any], str]:
    """Run code in a new interpreter; it sets `answer`. Returns that and the standard error."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json; print(json.dumps(answer))"],
        env={
            **{k: v for k, v in os.environ.items() if k != blas.ENVIRONMENT_VARIABLE},
            "PYTHONPATH": str(Path(blas.__file__).parents[1]),
            "XDG_CACHE_HOME": str(cache),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr
