"""Whether a machine did other things while something was measured on it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Shares of all CPUs' time from which on a run is said to have been disturbed.
_MUCH_STEAL = 0.03
_MUCH_OTHER = 0.05


@dataclass(frozen=True)
class Disturbance:
    """What others took of the machine during a run; None where it cannot be known.

    Attributes:
        steal: share of all CPUs' time that the host of a virtual machine took away.
        other: share that processes took which are not part of the measurement.
    """

    steal: float | None = None
    other: float | None = None

    def __str__(self) -> str:
        steal, other = self.steal or 0, self.other or 0
        return f"{steal:.0%} of the CPU time stolen, {other:.0%} used by other processes"

    @property
    def idle(self) -> bool:
        """Whether nothing that matters went on beside the run."""
        return (self.steal or 0) <= _MUCH_STEAL and (self.other or 0) <= _MUCH_OTHER


class Watch:
    """Looks at the CPUs from now until `stop`.

    Args:
        own_cpu: seconds of CPU time that the measured processes have used so far.
    """

    def __init__(self, own_cpu: Callable[[], float]) -> None:
        self._own_cpu = own_cpu
        self._own = own_cpu()
        self._start = time.perf_counter()
        self._cpus = _cpu_seconds()

    def stop(self) -> Disturbance:
        """What others did meanwhile."""
        after = _cpu_seconds()
        if self._cpus is None or after is None:
            return Disturbance()
        busy, steal = (new - old for new, old in zip(after, self._cpus, strict=True))
        whole = (time.perf_counter() - self._start) * (os.cpu_count() or 1)
        other = max(0.0, busy - (self._own_cpu() - self._own))
        return Disturbance(round(steal / whole, 3), round(other / whole, 3))


def _cpu_seconds() -> tuple[float, float] | None:
    """Busy and stolen seconds of all CPUs since start; None where there is no /proc/stat."""
    try:
        line = Path("/proc/stat").read_text().split("\n", 1)[0]
    except OSError:
        return None
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, line.split()[1:])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


def load_average() -> float:
    """Processes that ran or waited for a CPU in the last minute."""
    return round(os.getloadavg()[0], 2)


def describe() -> str:
    """The machine in a line: system, processor, CPUs."""
    return f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} CPUs"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
