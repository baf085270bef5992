"""A process with little memory lives through work that would take several times as much."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_SCRIPT = """
from pathlib import Path
from mlx_parallm.cpu import blas
blas.preload()
from mlx_parallm.engine.engine import Engine, EngineConfig
from mlx_parallm.engine.sequence import FinishReason
from mlx_parallm.errors import OutOfMemoryError
from mlx_parallm.models.loader import BUNDLED, load_model
from mlx_parallm.models.system_memory import resident_bytes
from tests.engine.driver import Driver, copy_of, greedy

MIB = 1 << 20
rows = [greedy([10 + i, *range(20, 1200)], 20, ignore_eos=True) for i in range(60)]

def started(limit):
    engine = Engine(lambda: load_model(BUNDLED), EngineConfig(
        memory_limit=limit, kv_cache_memory=4096 * MIB, prefix_cache_memory=4096 * MIB,
        max_batch_size=64))
    engine.start()
    engine.wait_ready(120)
    return engine

first = started(None)
alone = Driver(first).run(*(few := [copy_of(row) for row in rows[:3]]))
first.stop()
limit = resident_bytes() + 64 * MIB
engine = started(limit)
driver = Driver(engine).run(*rows, timeout_s=240)
for row in rows:
    end = driver.end(row)
    assert end.finish_reason is FinishReason.LENGTH or isinstance(end.error, OutOfMemoryError), end
for row, one in zip(rows, few):
    assert driver.end(row).error is not None or driver.tokens(row) == alone.tokens(one)
done = sum(driver.end(row).error is None for row in rows)
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
stats = engine.stats()
print(f"{done} of {len(rows)} done; peak {peak / MIB:.0f} MiB of {limit / MIB:.0f} MiB; "
      f"{stats.preemptions} preempted, {stats.prefix_evicted_pages} pages evicted", flush=True)
assert done > 30, done
assert stats.prefix_evicted_pages > 0
assert peak < limit + 64 * MIB  # without a limit it would take 100 MB more
engine.stop()
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_it_stays_within_its_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
