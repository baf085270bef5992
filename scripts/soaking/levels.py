"""What a server process holds, and whether it grows from rest to rest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import median

# (what, share, slack): by so much it may be more without being a leak.
_MAY_BREATHE = (
    ("resident", 1.05, 32 << 20),
    ("threads", 1.0, 3),
    ("descriptors", 1.0, 3),
)


@dataclass(frozen=True)
class Level:
    """What a process holds at a rest.

    Attributes:
        resident: bytes.
    """

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
    """What grows from rest to rest; None where all is level.

    The first third of the rests is not looked at: pools and caches fill then. Of the others the
    later half is compared with the earlier one.
    """
    settled = levels[len(levels) // 3 :]
    earlier, later = settled[: len(settled) // 2], settled[len(settled) // 2 :]
    if not earlier:
        return None
    for name, share, slack in _MAY_BREATHE:
        before = median(getattr(level, name) for level in earlier)
        after = median(getattr(level, name) for level in later)
        if after > share * before + slack:
            return f"{name} grew: {[getattr(level, name) for level in levels]} at the rests"
    return None
