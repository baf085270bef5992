"""What a server process holds, and whether it grows from rest to rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_MEMORY_SLACK = 64 << 20  # allocators and page caches breathe by so much
_COUNT_SLACK = 8


@dataclass(frozen=True)
class Level:
    """What a process holds at a rest."""

    resident: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Level | None:
        """The level of a process; None where there is no /proc."""
        folder = Path(f"/proc/{pid}")
        try:
            lines = (folder / "status").read_text().splitlines()
            fields = dict(line.split(":", 1) for line in lines)
            resident = int(fields["VmRSS"].split()[0]) << 10
            return cls(resident, int(fields["Threads"]), len(list((folder / "fd").iterdir())))
        except (OSError, KeyError):
            return None

    def __str__(self) -> str:
        return f"{self.resident >> 20} MiB, {self.threads} threads, {self.descriptors} descriptors"


def growth(levels: list[Level]) -> str | None:
    """What has grown from the first rest to the last one; None where all is level."""
    if len(levels) < 2:
        return None
    first, last = levels[0], levels[-1]
    if last.resident > 1.1 * first.resident + _MEMORY_SLACK:
        return f"memory grew: {[level.resident >> 20 for level in levels]} MiB at the rests"
    if last.threads > first.threads + _COUNT_SLACK:
        return f"threads grew: {[level.threads for level in levels]} at the rests"
    if last.descriptors > first.descriptors + _COUNT_SLACK:
        return f"descriptors grew: {[level.descriptors for level in levels]} at the rests"
    return None
