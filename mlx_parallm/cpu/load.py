"""How many CPUs other processes leave to this one, on Linux. No mlx here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

_STAT = Path("/proc/stat")
_WINDOW_S = 0.3
# CPUs used by others: above the first a thread is given up, below the second it comes back.
_TAKEN, _FREE = 0.6, 0.35


class LoadFollower:
    """How many threads to compute with, by what other processes use of this process's CPUs.

    Args:
        most: threads where nothing else runs.
        stat: the kernel's account of what its CPUs did.
        clock: seconds.
        own: CPU seconds of this process.
    """

    def __init__(
        self,
        most: int,
        stat: Path = _STAT,
        clock: Callable[[], float] = time.monotonic,
        own: Callable[[], float] = time.process_time,
    ) -> None:
        self.threads = self._most = most
        self._stat, self._clock, self._own = stat, clock, own
        self._tick = 1 / os.sysconf("SC_CLK_TCK")
        self._since, self._others_before = clock(), self._others()

    def look(self) -> int:
        """Threads for now; reads the kernel's account a few times a second at most."""
        now = self._clock()
        passed = now - self._since
        if passed >= _WINDOW_S:
            others = self._others()
            used = (others - self._others_before) / passed
            self._since, self._others_before = now, others
            self.threads = self._suited(used)
        return self.threads

    def _suited(self, used: float) -> int:
        """One thread less for each CPU in use by others; it comes back when the CPU is free."""
        fewest = self._most - int(used + 1 - _TAKEN)
        highest = self._most - int(used + 1 - _FREE)
        return max(1, highest, min(self.threads, fewest))

    def _others(self) -> float:
        """CPU seconds that others used so far of the CPUs that are ours too."""
        ours = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        busy = 0
        for line in self._stat.read_text().splitlines():
            name, *ticks = line.split()
            if name in ours:
                # user, nice, system, idle, iowait, irq, softirq, steal
                busy += sum(map(int, ticks[:3])) + sum(map(int, ticks[5:8]))
        return busy * self._tick - self._own()
