"""Large memory pages: a process starts itself again, once, with what it was given."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_parallm.cpu.huge_pages import TUNABLE, VARIABLE
from tests.waiting import PATIENCE_S

PROGRAM = """
import json, os, sys
from pathlib import Path
from mlx_parallm.cpu import huge_pages
huge_pages._MODE = Path(sys.argv[1])
huge_pages.restart_with_huge_pages()
print(json.dumps([os.getpid(), sys.argv[1:], os.environ.get("GLIBC_TUNABLES")]))
"""


def run(mode: Path, tunables: str | None) -> tuple[int, list[str], str | None]:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if tunables is not None:
        environment[VARIABLE] = tunables
    program = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM, str(mode), "an argument"],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = program.communicate(timeout=PATIENCE_S)
    assert program.returncode == 0
    pid, arguments, found = json.loads(output)
    assert pid == program.pid
    return pid, arguments, found


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
@pytest.mark.parametrize(
    ("mode", "before", "after"),
    [
        ("always [madvise] never", None, f"{TUNABLE}=1"),
        ("always [madvise] never", "glibc.malloc.check=0", f"glibc.malloc.check=0:{TUNABLE}=1"),
        ("always [madvise] never", f"{TUNABLE}=0", f"{TUNABLE}=0"),
        ("[always] madvise never", None, None),
        (None, None, None),
    ],
)
def test_a_process_restarts_where_large_pages_are_to_be_asked_for(
    tmp_path: Path, mode: str | None, before: str | None, after: str | None
) -> None:
    file = tmp_path / "enabled"
    if mode is not None:
        file.write_text(mode + "\n")
    _, arguments, found = run(file, before)
    assert arguments == [str(file), "an argument"]
    assert found == after
