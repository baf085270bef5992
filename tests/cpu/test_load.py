"""load.py: what others leave, from a made-up account of the kernel; and the real one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mlx_parallm.cpu import blas, blas_library
from mlx_parallm.cpu.load import LoadFollower
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")


@dataclass
class Machine:
    """Four CPUs of which this process may use all, and a clock."""

    stat: Path
    now: float = 0
    own: float = 0
    busy: list[float] = field(default_factory=lambda: [0.0] * 4)

    def run(self, seconds: float, own: float, others: list[float]) -> None:
        """Time passes; `own` and `others` are CPUs that are used meanwhile."""
        self.now += seconds
        self.own += own * seconds
        self.busy[0] += own * seconds
        self.busy = [b + seconds * o for b, o in zip(self.busy, others, strict=True)]
        tick = os.sysconf("SC_CLK_TCK")
        # Used by nice processes, then idle and waiting, which does not count, then stolen.
        lines = [f"cpu{i} 0 {int(b * tick)} 0 777 55 0 0 0 0 0" for i, b in enumerate(self.busy)]
        self.stat.write_text("\n".join(["cpu 1 2 3", *lines, "intr 5"]))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    machine = Machine(tmp_path / "stat")
    machine.run(1, 1, [0] * 4)
    return machine


def follow(machine: Machine, most: int) -> LoadFollower:
    return LoadFollower(most, machine.stat, lambda: machine.now, lambda: machine.own)


def test_threads_go_within_a_second_and_come_back(machine: Machine) -> None:
    follower = follow(machine, 4)
    steps: list[tuple[list[float], int]] = [
        ([0, 0, 0, 0], 4),
        ([0, 0, 0, 1], 3),
        ([0, 1, 0, 1], 2),
        ([1, 1, 1, 1], 1),
        ([0, 0, 1, 0.1], 3),
        ([0, 0, 0, 0.1], 4),
    ]
    for others, threads in steps:
        machine.run(0.5, 2, others)
        assert follower.look() == threads, others


def test_what_is_neither_free_nor_taken_changes_nothing(machine: Machine) -> None:
    follower = follow(machine, 2)
    for others, threads in [(0.5, 2), (0.7, 1), (0.5, 1), (0.3, 2), (0.5, 2)]:
        machine.run(0.5, 1, [0, 0, 0, others])
        assert follower.look() == threads, others


def test_a_moment_is_not_looked_at(machine: Machine) -> None:
    follower = follow(machine, 2)
    machine.run(0.1, 1, [0, 0, 0, 1])
    machine.stat.unlink()  # nobody may read it yet
    assert follower.look() == 2


def test_cpus_of_others_do_not_count(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    follower = follow(machine, 2)
    machine.run(1, 1, [0, 0, 1, 1])
    assert follower.look() == 2


CODE = """
import subprocess, sys, time
import mlx_parallm
from mlx_parallm.cpu import blas
blas.fit_threads(10_000_000)
loops = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range({cpus})]
until = time.monotonic() + {seconds}
while time.monotonic() < until and blas.info().threads > 1:
    time.sleep(0.02)
    blas.follow_load()
for loop in loops:
    loop.kill()
print(blas.info().threads)
"""


@pytest.mark.parametrize("user_set", ["", "2"])
@pytest.mark.skipif(
    "mlx_cpu" not in blas._mlx_packages() or blas_library.usable_cpus() < 2,
    reason="needs a BLAS of ours and two CPUs",
)
def test_a_blas_that_spins_gets_one_thread_beside_busy_processes(user_set: str) -> None:
    clean = dict.fromkeys(blas_library.THREAD_VARIABLES, "")
    off = {"MLX_PARALLM_PRODUCTS": "off", "OPENBLAS_NUM_THREADS": user_set}
    seconds = "1.5" if user_set else str(PATIENCE_S)
    code = CODE.replace("{cpus}", str(blas_library.usable_cpus())).replace("{seconds}", seconds)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **clean, **off},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=True,
    )
    assert done.stdout.strip() == (user_set or "1")
