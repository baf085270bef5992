"""Whether a machine is idle, as far as it can be seen from inside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchlib.serving.machine import Disturbance, Watch, describe

needs_proc = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc/stat")


@needs_proc
def test_a_busy_process_is_seen() -> None:
    loop = "import time; e = time.time() + 20\nwhile time.time() < e: pass"
    with subprocess.Popen([sys.executable, "-c", loop]) as process:
        watch = Watch(time.process_time)
        time.sleep(1)
        found = watch.stop()
        process.kill()
    assert found.other is not None
    assert found.other > 0.3 / (os.cpu_count() or 1)
    assert not found.idle


@needs_proc
def test_the_measured_processes_own_time_is_not_anothers() -> None:
    without, watch = Watch(lambda: 0.0), Watch(time.process_time)
    before = time.process_time()
    while time.process_time() < before + 0.5:
        pass
    found, all_of_it = watch.stop().other, without.stop().other
    assert found is not None and all_of_it is not None
    # 0.5 s of CPU time in as many seconds, or more where others run too.
    assert found < all_of_it


def test_what_is_said() -> None:
    assert Disturbance().idle  # nothing is known to be wrong
    assert Disturbance(0.0, 0.04).idle
    assert not Disturbance(0.05, 0.0).idle
    assert str(Disturbance(0.01, 0.5)) == "1% of the CPU time stolen, 50% used by other processes"
    assert f"{os.cpu_count()} CPUs" in describe()
